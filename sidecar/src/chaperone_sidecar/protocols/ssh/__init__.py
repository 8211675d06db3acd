"""SSH: exec, shells, SFTP and scp of agents, decided one by one."""

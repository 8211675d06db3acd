"""MySQL and MariaDB; see README.md."""

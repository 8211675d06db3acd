"""Paths as objects of policy, and which of them say more than other files do.

An object is `path:` and the whole path; where the log-in user's home is not known yet, a tilde stands for it. What
cannot be named before it runs is `Unclear`: `..`, which a symbolic link can turn anywhere, and the doors of /proc.
"""

from __future__ import annotations

import re
from typing import Final

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.ssh.shell import Unclear, Word

PREFIX: Final = "path:"
HOME: Final = "~"
MAX_PATH_CHARACTERS: Final = 4096  # PATH_MAX of Linux

# Other names of a process's own streams; what is read or written there is decided where it comes from.
_OWN_STREAMS: Final = frozenset({"/dev/null", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/tty", "/dev/zero"})
_DOOR: Final = re.compile(r"/proc/[^/]+(?:/task/[^/]+)?/(?:root|cwd|fd|map_files|exe|mem)(?:/|$)|/dev/fd(?:/|$)")
_NETWORK: Final = re.compile(r"/dev/(?:tcp|udp)/")  # to bash a connection

# Keys, tokens, passwords, histories: by the taxonomy `read_sensitive`.
_SECRET: Final = re.compile(
    r"""/etc/(?:g?shadow-?|sudoers(?:\.d/.*)?|ssl/private(?:/.*)?|ssh/ssh_host_[^/]*_key)
    | /proc/[^/]+/environ | /(?:var/)?run/secrets(?:/.*)?
    | .*/(?:\.ssh|\.gnupg|\.aws|\.azure|\.kube|\.docker|\.config/gcloud|\.password-store)(?:/.*)?
    | .*/(?:\.netrc|\.pgpass|\.my\.cnf|\.git-credentials|\.npmrc|\.pypirc|\.env|\.vault-token|\.[a-z_]*history)
    | /proc/kcore | /dev/(?!(?:shm|mqueue)/|(?:u?random|full)$).*
    | .*/(?:id_(?:rsa|dsa|ecdsa|ed25519)|[^/]*\.(?:pem|key|p12|pfx|jks|kdbx|keytab))""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
# Who writes there decides what others run or who may log in: `privilege`.
_POWER: Final = re.compile(
    r"""/etc/(?:passwd|group|g?shadow|sudoers|sudoers\.d|pam\.d|ssh|cron[^/]*|crontab|ld\.so[^/]*|profile|profile\.d
        |bash\.bashrc|environment|systemd|init\.d|rc[^/]*|security|apt|yum[^/]*|hosts|nsswitch\.conf)(?:/.*)?
    | /(?:bin|sbin|lib|lib64|boot|usr/(?:bin|sbin|lib|lib64|libexec|local/(?:bin|sbin|lib))|lib/systemd)(?:/.*)?
    | /(?:proc|sys)(?:/.*)? | /var/spool/(?:cron|at)(?:/.*)?
    | .*/\.ssh(?:/.*)? | .*/\.(?:bash|zsh|k?sh)(?:rc|env|_profile|_login|_logout) | .*/\.(?:profile|zprofile|zlogin)
    | .*/s?bin/.* | .*/\.config/(?:systemd|autostart)(?:/.*)? | .*/\.git/(?:hooks|config)(?:/.*)?
    | .*/\.forward | .*/\.gitconfig""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)

_READS: Final = frozenset({Effect.READ, Effect.BULK_READ})
_WRITES: Final = frozenset({Effect.CREATE, Effect.MODIFY, Effect.DELETE, Effect.BULK_WRITE})


def normal(text: str, cwd: str | None = HOME, *, is_home: bool = False, home: str = HOME) -> str:
    """The path that a program means, without doubled and superfluous parts.

    Args:
        text: as the program gets it.
        cwd: where it runs: absolute, `~` or below it; None where that is not known.
        is_home: the text begins with a tilde that the shell expands.
        home: what it expands to, where that is known.

    Raises:
        Unclear: it cannot be told which file that is.
    """
    if not text:
        raise Unclear("a path is empty")
    if len(text) > MAX_PATH_CHARACTERS:
        raise Unclear(f"a path has more than {MAX_PATH_CHARACTERS} characters")
    if any(character < " " or character == "\x7f" for character in text):
        raise Unclear("a path has a control character in it")
    if is_home:
        text = home + text[1:]
    elif not text.startswith("/"):
        if cwd is None:
            raise Unclear(f"where {text} lies depends on whether a cd before it works; write the whole path")
        text = f"{cwd}/{text}"
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Unclear("a path with .. depends on links; write the whole path")
    found = "/".join(parts) if text.startswith("~") else "/" + "/".join(parts)
    if _DOOR.match(found):
        raise Unclear(f"{found} is another name of anything")
    return found


def accesses(effect: Effect, path: str) -> tuple[Access, ...]:
    """What an effect on a path is to policy; nothing for a process's own streams."""
    if path in _OWN_STREAMS:
        return ()
    if _NETWORK.match(path):
        return (Access(Effect.EXTERNAL_IO, PREFIX + path),)
    if effect in _WRITES:
        if path.startswith("/dev/") and not path.startswith(("/dev/shm/", "/dev/mqueue/")):  # noqa: S108 - named only
            return (Access(Effect.DESTROY, PREFIX + path),)
        if _POWER.fullmatch(path):
            return (Access(Effect.PRIVILEGE, PREFIX + path),)
    if effect in _READS and _SECRET.fullmatch(path):
        sensitive = Access(Effect.READ_SENSITIVE, PREFIX + path)
        return (sensitive,) if effect is Effect.READ else (sensitive, Access(effect, PREFIX + path))
    return (Access(effect, PREFIX + path),)


def of_word(word: Word, cwd: str | None, home: str = HOME) -> str:
    """The path that a word of a command line means.

    Raises:
        Unclear: as `normal`.
    """
    return normal(word.text, cwd, is_home=word.home, home=home)

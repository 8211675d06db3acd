"""What well-known programs do with the words they are given: a table, and nothing that decides.

Only options that are written here are known, with what their values are; any other makes the command unknown, for an
option can name a file, a program or a place in the network. GNU's abbreviations of long options are not known either.
Source: the manuals of GNU coreutils 9, grep 3, findutils 4, procps 4, systemd 252, util-linux 2.38; busybox 1.36 has
the same letters with the same meanings, or does not know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from chaperone_sidecar.command import Effect

READ: Final = Effect.READ
BULK: Final = Effect.BULK_READ
MODIFY: Final = Effect.MODIFY
MANY: Final = 1 << 30


class Use(msgspec.Struct, frozen=True):
    """One program.

    Attributes:
        effect: on the object `command:<name>`.
        operands: the effect on each operand, which is a path; None: operands are text.
        flags: options of one letter without a value; `values`: with one that is text; `files`: with one that is a path.
        words: long options without a value or with one after `=`; `word_values`: those that take the next word, too.
        stronger: what an option, by letter or long name, makes of the effect on operands.
        skip: so many operands come first that are text; `most`: there are at most so many.
        last: the effect on the last operand, where it is another.
        is_here: without operands it works on the present directory.
        is_text: a word that is no option of the list is text to it, as `echo -x` prints -x.
        pattern_options: where one of them is given, no operand is skipped.
    """

    effect: Effect = READ
    operands: Effect | None = READ
    flags: str = ""
    values: str = ""
    files: Mapping[str, Effect] = {}
    words: frozenset[str] = frozenset()
    word_values: frozenset[str] = frozenset()
    stronger: Mapping[str, Effect] = {}
    skip: int = 0
    most: int = MANY
    last: Effect | None = None
    is_here: bool = False
    is_text: bool = False
    pattern_options: frozenset[str] = frozenset()


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_GREP: Final = Use(
    flags="EFGPiyvwxchlLnoqsabHTZzIrR", values="eABCmdD", files={"f": READ}, skip=1,
    words=words("ignore-case invert-match count color colour line-number only-matching quiet no-messages recursive "
                 "include exclude exclude-dir extended-regexp fixed-strings files-with-matches word-regexp text "
                 "no-filename with-filename context after-context before-context max-count regexp"),
    stronger={"r": BULK, "R": BULK, "recursive": BULK}, pattern_options=words("e f regexp"),
)  # fmt: skip
_SUM: Final = Use(flags="bctwz", words=words("check quiet status tag"))

TABLE: Final[Mapping[str, Use]] = {
    # --- files are read -------------------------------------------------------------------------------------------
    "cat": Use(flags="AbeEnstTuv"),
    "head": Use(flags="qvz0123456789", values="nc", words=words("lines bytes quiet verbose")),
    "tail": Use(flags="qvzfF0123456789", values="ncs", words=words("lines bytes follow quiet retry")),
    "wc": Use(flags="clmLw", words=words("lines words bytes chars")),
    "nl": Use(flags="p", values="bdfhilnsvw"),
    "tac": Use(), "rev": Use(), "strings": Use(flags="a", values="ntse"),
    "cut": Use(flags="ns", values="bcdf", words=words("delimiter fields characters bytes complement")),
    "fold": Use(flags="bs", values="w"),
    "column": Use(flags="tx", values="sco"),
    "paste": Use(flags="sz", values="d"),
    "comm": Use(flags="123z", most=2),
    "cmp": Use(flags="bls", values="in", most=4),
    "diff": Use(
        flags="abBcdeEiNpqrstuwyT", values="CUW", most=2, words=words("brief color unified recursive"),
        stronger={"r": BULK, "recursive": BULK},
    ),
    "join": Use(flags="iz", values="12jotave", most=2),
    "sort": Use(
        flags="bdfgiMhnRrVcCmsuz", values="kt", files={"o": MODIFY},
        words=words("reverse unique numeric-sort human-numeric-sort key field-separator"),
    ),
    "uniq": Use(flags="cdDiuz", values="fsw", most=1),  # a second operand is written
    "od": Use(flags="abcdfiloszvx", values="AjNtwS"),
    "xxd": Use(flags="abeipruC", values="cglos", most=1),
    "hexdump": Use(flags="bcCdovx", values="ns"),
    "base64": Use(flags="di", values="w", words=words("decode wrap"), most=1),
    "base32": Use(flags="di", values="w", most=1),
    "grep": _GREP, "egrep": _GREP, "fgrep": _GREP,
    "md5sum": _SUM, "sha1sum": _SUM, "sha224sum": _SUM, "sha256sum": _SUM, "sha384sum": _SUM, "sha512sum": _SUM,
    "b2sum": _SUM, "cksum": Use(), "sum": Use(flags="rs"),
    "zcat": Use(flags="f"),
    "file": Use(flags="bhiLz", words=words("mime mime-type brief")),
    "stat": Use(flags="fLt", values="c", words=words("format printf")),
    "readlink": Use(flags="efmnqsvz"), "realpath": Use(flags="eLmPqsz"),
    "jq": Use(flags="rRcCsSMjnea", skip=1, words=words("raw-output compact-output slurp sort-keys null-input tab")),
    # --- directories ----------------------------------------------------------------------------------------------
    "ls": Use(
        flags="aAbBcCdDfFgGhHiklLmnNopqQrRsStuUvxXZ1", values="ITw", is_here=True,
        words=words("all almost-all color directory full-time group-directories-first human-readable inode "
                     "numeric-uid-gid recursive reverse size sort time time-style"),
        stronger={"R": BULK, "recursive": BULK},
    ),
    "dir": Use(flags="aAhlrtR1", is_here=True, stronger={"R": BULK}),
    "du": Use(
        BULK, BULK, flags="0abcDhHklLmPsSx", values="dBt", is_here=True,
        words=words("all apparent-size human-readable max-depth summarize total bytes"),
    ),
    "tree": Use(
        BULK, BULK, flags="adfhilnpqrstuACDFNQSX", values="LIP", is_here=True,
        words=words("dirsfirst noreport du filelimit"),
    ),
    # --- the system -----------------------------------------------------------------------------------------------
    "df": Use(flags="aHhikPTl", values="Btx", words=words("human-readable total output type")),
    "free": Use(operands=None, flags="bkmghtlw", values="cs", most=0),
    "uptime": Use(operands=None, flags="ps", most=0),
    "uname": Use(operands=None, flags="asnrvmpio", most=0),
    "arch": Use(operands=None, most=0), "nproc": Use(operands=None, words=words("all ignore"), most=0),
    "hostname": Use(operands=None, flags="AdfiIs", most=0),  # an operand would set it
    "whoami": Use(operands=None, most=0), "logname": Use(operands=None, most=0), "tty": Use(operands=None, most=0),
    "id": Use(operands=None, flags="gGnruz", most=1), "groups": Use(operands=None, most=1),
    "who": Use(operands=None, flags="abdHlmpqrstTu", most=0), "w": Use(operands=None, flags="hsfoip", most=1),
    "last": Use(operands=None, flags="adFiRwx0123456789", values="n", most=1),
    "pwd": Use(operands=None, flags="LP", most=0), "lsblk": Use(operands=None, flags="abdfilmnpt", values="o"),
    "lscpu": Use(operands=None, flags="abce"), "lsmod": Use(operands=None, most=0),
    "locale": Use(operands=None, most=0),
    "pgrep": Use(operands=None, flags="aflnovx", values="uUPtG", most=1),
    "pidof": Use(operands=None, flags="sx"),
    "ss": Use(operands=None, flags="tulnpaeoimsxwH46r", most=0),
    "netstat": Use(operands=None, flags="tulnpaeoirsxw46W", most=0),
    "dmesg": Use(operands=None, flags="HTdekLrtuwx", values="fl", most=0),
    "vmstat": Use(operands=None, flags="aSwstdm"), "iostat": Use(operands=None, flags="cdhkmtxyz"),
    "journalctl": Use(
        BULK, None, flags="abefklmqrx", values="unptgoSUcb", most=0,
        words=words("no-pager lines boot follow reverse dmesg utc no-hostname all catalog quiet list-boots disk-usage"),
        word_values=words("since until unit user-unit output priority grep identifier"),
    ),
    "printenv": Use(Effect.READ_SENSITIVE, None, flags="0"),
    # --- words ----------------------------------------------------------------------------------------------------
    "echo": Use(operands=None, flags="neE", is_text=True),
    "printf": Use(operands=None), "true": Use(operands=None), "false": Use(operands=None), ":": Use(operands=None),
    "sleep": Use(operands=None), "seq": Use(operands=None, flags="w", values="fs"),
    "basename": Use(operands=None, flags="az", values="s"), "dirname": Use(operands=None, flags="z"),
    "tr": Use(operands=None, flags="cCdst", most=2), "exit": Use(operands=None, most=1),
    "which": Use(operands=None, flags="a"), "type": Use(operands=None, flags="aftpP"),
    "cal": Use(operands=None, flags="13jmsy"), "expr": Use(operands=None),
    # --- files are changed ----------------------------------------------------------------------------------------
    "mkdir": Use(Effect.CREATE, Effect.CREATE, flags="pv", values="m", words=words("parents verbose mode")),
    "touch": Use(MODIFY, MODIFY, flags="acfhm", values="dt", files={"r": READ}, words=words("date no-create")),
    "tee": Use(MODIFY, MODIFY, flags="aip", words=words("append")),
    "truncate": Use(Effect.DESTROY, Effect.DESTROY, flags="co", values="s", files={"r": READ}, words=words("size")),
    "cp": Use(
        MODIFY, READ, flags="abdfHiLnPprRuvxT", files={"t": MODIFY}, last=MODIFY,
        words=words("archive force no-clobber preserve recursive update verbose"),
        stronger={"a": BULK, "r": BULK, "R": BULK, "recursive": BULK, "archive": BULK},
    ),
    "mv": Use(
        MODIFY, Effect.DELETE, flags="bfinuvT", files={"t": MODIFY}, last=MODIFY,
        words=words("force no-clobber update verbose"),
    ),
    "install": Use(MODIFY, READ, flags="bCcDpvT", files={"t": MODIFY}, last=MODIFY),
    "ln": Use(
        Effect.PRIVILEGE, Effect.PRIVILEGE, flags="sfnbivrT", last=Effect.PRIVILEGE,
        words=words("symbolic force no-dereference"),
    ),
    "rm": Use(
        Effect.DELETE, Effect.DELETE, flags="dfiIrRv", words=words("force recursive verbose dir one-file-system"),
        stronger={"r": Effect.DESTROY, "R": Effect.DESTROY, "recursive": Effect.DESTROY},
    ),
    "rmdir": Use(Effect.DELETE, Effect.DELETE, flags="pv"),
    "unlink": Use(Effect.DELETE, Effect.DELETE, most=1),
    "shred": Use(Effect.DESTROY, Effect.DESTROY, flags="fuvxz", values="ns"),
    "chmod": Use(Effect.PRIVILEGE, Effect.PRIVILEGE, flags="cfvRrwxXst", skip=1, words=words("recursive verbose")),
    "chown": Use(Effect.PRIVILEGE, Effect.PRIVILEGE, flags="cfhvRHLP", skip=1, words=words("recursive verbose")),
    "chgrp": Use(Effect.PRIVILEGE, Effect.PRIVILEGE, flags="cfhvRHLP", skip=1, words=words("recursive verbose")),
    "kill": Use(Effect.MAINTAIN, None, flags="lLABCDEFGHIJKMNOPQRSTUVWXYZ0123456789", values="sn"),
    # --- the other side of git; its hooks are the host's own -----------------------------------------------------
    "git-upload-pack": Use(READ, READ, words=words("strict no-strict timeout stateless-rpc"), most=1),
    "git-upload-archive": Use(READ, READ, most=1),
    "git-receive-pack": Use(MODIFY, MODIFY, most=1),
}  # fmt: skip
"""Programs whose words say which files they touch."""

_BARE: Final[Mapping[Effect, str]] = {
    Effect.EXECUTE_CODE: """
        python python2 python3 perl ruby node nodejs deno bun php lua tclsh wish Rscript java scala groovy go cargo
        npx bash sh dash ash zsh ksh ksh93 mksh yash csh tcsh fish rbash pwsh eval source . awk gawk mawk nawk ed ex vi
        vim vimdiff view nvim nano pico emacs emacsclient joe less more most pg man info xargs parallel watch script
        expect tmux screen at batch make cmake gcc cc g++ clang ld as gdb lldb strace ltrace perf docker podman nerdctl
        kubectl crictl ctr helm ansible ansible-playbook salt-call puppet chef-client terraform git hg svn sqlite3 psql
        mysql mariadb mongosh redis-cli tcpdump nmap busctl dbus-send flock run-parts start-stop-daemon ld.so
        unbuffer env-update direnv logrotate rlwrap zip split csplit bc dc m4 openvt
        pip pip3 npm yarn gem composer conda""",
    Effect.EXTERNAL_IO: """
        curl wget aria2c lynx links w3m elinks ftp tftp lftp rclone s3cmd aws gcloud az mail sendmail
        mailx mutt ping ping6 dig nslookup host traceroute tracepath whois sftp ftpget ftpput""",
    Effect.TUNNEL: "ssh scp nc ncat netcat socat telnet autossh sshuttle chisel stunnel openvpn wg pppd slirp4netns",
    Effect.PRIVILEGE: """
        su runuser pkexec chroot unshare nsenter setpriv capsh useradd usermod userdel adduser deluser groupadd groupmod
        groupdel addgroup delgroup passwd chpasswd gpasswd chage vipw visudo crontab newgrp sg setfacl chattr setcap
        mount umount losetup cryptsetup swapon swapoff iptables ip6tables nft ufw firewall-cmd sysctl insmod rmmod
        modprobe systemd-run loginctl hostnamectl timedatectl reboot shutdown halt poweroff init telinit update-rc.d
        update-alternatives dpkg-reconfigure ssh-keygen ssh-add ssh-copy-id semanage setenforce setsebool
        alias unalias export declare typeset readonly unset set shopt enable trap ulimit umask hash builtin""",
    Effect.DESTROY: "mkfs mke2fs mkswap wipefs fdisk sfdisk cfdisk gdisk sgdisk parted blkdiscard hdparm badblocks",
    Effect.MAINTAIN: "killall pkill renice ionice sync fstrim updatedb ldconfig",
    Effect.SCHEMA: "apt apt-get aptitude dpkg yum dnf rpm apk pacman zypper snap flatpak brew",
}

BARE: Final[Mapping[str, Effect]] = {name: effect for effect, text in _BARE.items() for name in text.split()}
"""Programs of which it is enough to know that they run; what they touch follows from words that are not read here."""

INSTALLS: Final = words(_BARE[Effect.SCHEMA])
"""Those run scripts of packages that they fetch."""

SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "ksh"})
"""Whose `-c` is read as the text itself is."""

FIND_WORDS: Final = words(
    """-print -print0 -ls -prune -depth -xdev -mount -empty -true -false -not -a -and -o -or ( ) , -quit -readable
    -writable -executable -nouser -nogroup -noleaf -daystart -follow -H -L -P"""
)
FIND_VALUES: Final = words(
    """-name -iname -path -ipath -wholename -type -xtype -size -mtime -atime -ctime -mmin -amin -cmin -maxdepth
    -mindepth -user -group -uid -gid -perm -links -inum -regex -iregex -regextype -printf -fstype -used"""
)
FIND_FILES: Final = frozenset({"-newer", "-anewer", "-cnewer", "-samefile"})
FIND_CODE: Final = frozenset({"-exec", "-execdir", "-ok", "-okdir"})

SYSTEMCTL: Final[Mapping[str, Effect]] = {
    **dict.fromkeys(
        words("""status is-active is-enabled is-failed list-units list-unit-files list-timers list-sockets
        list-dependencies list-jobs"""),
        READ,
    ),
    **dict.fromkeys(words("show cat"), Effect.READ_SENSITIVE),  # units name passwords in their variables
    **dict.fromkeys(
        words("start stop restart reload try-restart reload-or-restart reset-failed kill"), Effect.MAINTAIN
    ),
}
SYSTEMCTL_WORDS: Final = words("no-pager all type state quiet full lines output failed plain no-legend")

"""Commands as a person would type them: shown, run and judged."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaperone_tools.cache import checkout
from chaperone_tools.errors import ToolsError

EXAMPLES: Final = Path("examples") / "demo"  # of the checkout, in which every shown command runs
COMMAND_LIMIT_S: Final = 60.0  # of one shown command; an attempt to escape takes 3 s


@dataclass
class Story:
    """Runs commands as a person would type them, shows what they print, and keeps what was not as expected."""

    environment: Mapping[str, str]
    failures: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """A heading."""
        print(f"\n{styled(f'== {title}', '1;36')}", flush=True)

    def run(
        self,
        *command: str,
        script: str = "",
        shows: Sequence[str] = (),
        hides: Sequence[str] = (),
        status: int = 0,
    ) -> str:
        """Type a command and judge what comes back; gives what it printed.

        Args:
            command: the words.
            script: name of a file of examples/demo that it reads from its standard input.
            shows: what its output must contain.
            hides: what it must not.
            status: its exit status.
        """
        source = EXAMPLES / script
        shown = typed(command) + (f" < {source}" if script else "")
        print(f"\n{styled(f'$ {shown}', '1')}", flush=True)
        text = (checkout() / source).read_text() if script else ""
        ended, output = self._output(command, text)
        print(output.rstrip(), flush=True)
        for wanted in shows:
            self.expect(wanted in output, f"`{shown}` did not show {wanted!r}")
        for unwanted in hides:
            self.expect(unwanted not in output, f"`{shown}` showed {unwanted!r}")
        self.expect(ended == status, f"`{shown}` ended with {ended}, not {status}")
        return output

    def apply(self, name: str, values: Mapping[str, str] | None = None) -> None:
        """Apply a manifest, with values where it has placeholders.

        Args:
            name: of a file of examples/demo.
            values: by placeholder; the manifest has some of them.

        Raises:
            ToolsError: it was refused; nothing after it can work.
        """
        text = (checkout() / EXAMPLES / name).read_text()
        used = {placeholder: value for placeholder, value in (values or {}).items() if placeholder in text}
        for placeholder, value in used.items():
            text = text.replace(placeholder, value)
        edits = " ".join(f"-e 's|{placeholder}|{value}|'" for placeholder, value in used.items())
        path = EXAMPLES / name
        shown = f"sed {edits} {path} | kubectl apply -f -" if edits else f"kubectl apply -f {path}"
        print(f"\n{styled(f'$ {shown}', '1')}", flush=True)
        ended, output = self._output(("kubectl", "apply", "-f", "-"), text)
        print(output.rstrip(), flush=True)
        if ended:
            raise ToolsError(f"{path} was not accepted")

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Keep what is not as it should be, and say so at once."""
        if not is_so:
            self.failures.append(otherwise)
            print(styled(f"!! not as expected: {otherwise}", "1;31"), flush=True)

    def _output(self, command: Sequence[str], text: str) -> tuple[int, str]:
        try:
            done = subprocess.run(
                command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=COMMAND_LIMIT_S, env=self.environment, cwd=checkout(), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            return -1, f"{said}\n(ended after {COMMAND_LIMIT_S:.0f} s)"
        except OSError as error:
            raise ToolsError(f"`{command[0]}` does not run: {error.strerror}") from error
        return done.returncode, done.stdout


def with_stdin(command: Sequence[str]) -> tuple[str, ...]:
    """The same `kubectl exec`, which reads a standard input."""
    return (*command[:2], "-i", *command[2:])


def typed(command: Sequence[str]) -> str:
    """A command line as a person would type it: double quotes where they do, for SQL's own are single ones."""
    words = []
    for word in command:
        is_plain_text = " " in word and not set('"$`\\!') & set(word)
        words.append(f'"{word}"' if is_plain_text else shlex.quote(word))
    return " ".join(words)


def styled(text: str, code: str) -> str:
    """Text with a style of a terminal, on one."""
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text

"""A machine that the system's `ssh` reaches: Linux or macOS, with Python 3.8 or newer, numpy and the runtime.

~/.ssh/config, agents and jump hosts work as they do by hand; EDGEKD_SSH replaces the command ("ssh -F file"), as GIT_SSH_COMMAND does
for git. Host keys are checked and never taken on trust. One connection serves a whole run: what travels is sent once, the
clock runs there, raw samples come back, and nothing stays there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from ..bench import rates as machine
from ..bench import roofline
from ..errors import BadInput, Missing
from ..names import nearest
from . import DEVICES, kit_backends, packing
from .link import START, Link, Lost

if TYPE_CHECKING:
    from ..bench.things import Thing
    from . import Tell

HELP = DEVICES["ssh"][1]

VARIABLE = "EDGEKD_SSH"

OPTIONS = {
    "BatchMode": "yes",  # nobody is asked for a password
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
}
"""Options of ssh that hold whatever the user's file says."""


@dataclass(frozen=True)
class Address:
    """What an address says. host: a name of ~/.ssh/config, of a machine, or a number."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    folder: str | None = None

    @property
    def login(self) -> str:
        """What a person types after `ssh`."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"

    def command(self) -> list[str]:
        """Return the command that starts Python there, its standard input and output at this end."""
        options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
        where = [*(["-p", str(self.port)] if self.port else []), *(["-l", self.user] if self.user else []), "--", self.host]
        there = " ".join([shlex.quote(self.python), *(shlex.quote(word) for word in START)])
        return [*shlex.split(os.environ.get(VARIABLE) or "ssh"), *options, *where, there]


def parse(address: str) -> Address:
    """Read an address. Raises BadInput.

    >>> parse("ssh://pi@raspberrypi:2222?python=/opt/env/bin/python")
    Address(host='raspberrypi', user='pi', port=2222, python='/opt/env/bin/python', folder=None)
    """
    rest, _, asked = address.removeprefix("ssh://").partition("?")
    # No urlsplit: names in ~/.ssh/config have capitals. None begins with -, which ssh would take for an option.
    found = re.fullmatch(r"(?:([\w.][\w.+-]*)@)?(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.][\w.-]*))(?::(\d{1,5}))?/?", rest)
    if not address.startswith("ssh://") or not found:
        raise BadInput(f"device `{address}`: write {HELP}; there is no place for a password: ssh's keys and agent are used")
    user, number, name, port = found.groups()
    options = dict(parse_qsl(asked, keep_blank_values=True))
    for key, value in options.items():
        if key not in ("python", "folder"):
            raise BadInput(
                f"device `{address}`: no option `{key}`{nearest(key, ('python', 'folder'))}; there are python and folder"
            )
        if not value or not value.isprintable():
            raise BadInput(f"device `{address}`: `{key}` is empty or has odd characters")
    if port and not 0 < int(port) < 65536:
        raise BadInput(f"device `{address}`: there is no port {port}")
    return Address(number or name, user, int(port) if port else None, **options)


def why(address: Address, code: int, printed: str) -> str:
    """Say why ssh could not start Python there, and what to do. code: ssh's exit code; printed: what it wrote to standard error."""
    last = (printed.strip().splitlines() or [""])[-1].strip()
    said = f" ({last})" if last else ""
    by_hand = f"`ssh {address.login}`"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in printed:
        return (
            "the host key has CHANGED: either the machine was set up anew, or another one answers in its place. Find out which; "
            f"only then remove the old key (`ssh-keygen -R` shows how) and connect once by hand: {by_hand}"
        )
    if "ost key verification failed" in printed or re.search(r"No \S+ host key is known", printed):
        return f"its host key is not known here: connect once by hand and compare its fingerprint: {by_hand}"
    if "ermission denied" in printed and code == 255:
        return f"it does not let us in{said}: {by_hand} has to work without a password (ssh-copy-id, ssh-agent)"
    if re.search("Could not resolve|not known|No address|nodename nor", printed):
        return f"there is no such host{said}"
    if re.search("refused|timed out|No route|unreachable|reset by|onnection closed", printed):
        return f"it cannot be reached{said}: is it on, and does sshd listen on port {address.port or 22}?"
    if code in (126, 127) and last:
        return f"no `{address.python}` there{said}: name one with ?python=/path/to/python3"
    if code == 127:
        return f"OpenSSH's client is needed here, such as from `apt install openssh-client`, or its command in {VARIABLE}"
    if code == -9:
        return f"no answer within a minute{said}: does {by_hand} work?"
    return f"Python could not be started there: ssh ended with exit code {code}{said}"


class Ssh:
    """One machine; entered, it is connected."""

    def __init__(self, address: str) -> None:
        self.address, self._address = address, parse(address)
        self.title = self._address.host
        self._link: Link | None = None
        self._facts: dict[str, Any] = {}
        self._rates: dict[int, dict[str, Any] | None] = {}

    def __enter__(self) -> Ssh:
        to = self._address
        link = Link(self.address, to.command(), lambda code, printed: why(to, code, printed), to.folder)
        self._link = link.__enter__()
        try:
            self._learn()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        if self._link is not None:
            self._link.__exit__()
            self._link = None

    def describe(self) -> dict[str, Any]:
        """Describe the machine."""
        return dict(self._known()["host"])

    def runtimes(self) -> dict[str, str | None]:
        """Return the versions of the runtimes there: module -> version, None for one that is not installed."""
        return dict(self._known()["runtimes"])

    def takes(self, thing: Thing) -> str | None:
        """Say why a thing cannot be timed there; None when it can."""
        known = self._known()
        return packing.refuses(thing.backend, thing.files) or packing.lacks(
            thing.backend, known["runtimes"], known["python"], str(known["host"].get("os"))
        )

    def scenarios(self) -> frozenset[str]:
        """Return all scenarios."""
        return frozenset({"single-stream", "chain", "generation", "streams", "sustained"})

    def run(self, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Time a job's things there. Raises WorkerDied, Missing."""
        there, files = packing.travelling(job)
        link = self._entered()
        link.put(files, tell)
        return link.order({"do": "measure", "job": there}, tell)

    def rates(self, threads: int) -> dict[str, Any] | None:
        """Return its matrix rate and bandwidth, measured once, kept as roofline.rates_of keeps this machine's; None where that fails."""
        if threads not in self._rates:
            self._rates[threads] = self._kept_rates(threads)
        return self._rates[threads]

    def _kept_rates(self, threads: int) -> dict[str, Any] | None:
        known = self._known()
        cores = known["host"].get("cores") or 1
        parts = (machine.FORMAT, self.address, known["host"].get("cpu"), cores, threads, known["runtimes"])
        key, file = json.dumps(parts), roofline.cache_file().with_name("rates-of-devices.json")
        kept = roofline._read(file).get(key)
        if roofline._whole(kept, threads) and (_busy(known["load_average"], cores) or not _busy(kept["load_average"], cores)):
            return kept
        try:
            made = self._entered().order({"do": "rates", "threads": threads})
        except Lost:
            raise
        except Missing:
            return None
        roofline._write(file, {**roofline._read(file), key: made})
        return made

    def _known(self) -> dict[str, Any]:
        """Return what the machine said of itself; connects for it where nobody has."""
        if not self._facts:
            with self:
                pass
        return self._facts

    def _learn(self) -> None:
        if not self._facts:
            link = self._entered()
            told = link.order({"do": "describe", "runtimes": kit_backends.DISTRIBUTIONS})
            self._facts = {**told, "python": link.hello["executable"]}
        self.title = f"{self._facts['host'].get('cpu') or 'machine'} ({self._address.host})"

    def _entered(self) -> Link:
        assert self._link is not None, "a device is entered before it is used"
        return self._link


def _busy(load: float | None, cores: int) -> bool:
    return load is not None and load > 0.5 * cores


def open_(address: str) -> Ssh:
    """Return the machine of an address, not yet reached. Raises BadInput."""
    return Ssh(address)

"""The bundles of all sessions of a namespace in a period, one after the other, each gone when the next one comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from chaperone_cli.evidence import CannotVerify
from chaperone_cli.export import CannotExport, fetch_bundle, fetch_policy, fetch_trust, proof_path
from chaperone_cli.kubectl import CannotAsk, Cluster, place
from chaperone_cli.report.asking import Asking
from chaperone_cli.report.period import BadPeriod, Period, days
from chaperone_cli.report.rows import part
from chaperone_cli.say import progress


class Keys(msgspec.Struct, frozen=True):
    """What the auditor brings: the gateway CA, the log's keys, the operator's key."""

    trust: Path | None = None
    log_policy: Path | None = None
    operator: Path | None = None


def fetched(
    cluster: Cluster, namespace: str, begin: str, end: str, keys: Keys, system_namespace: str = "chaperone-system"
) -> Iterator[tuple[str, Path, Keys]]:  # fmt: skip
    """Name and bundle of each session, and the keys by which it is verified: those given, else the cluster's.

    Args:
        cluster: how it is reached.
        namespace: "" for that of the context.
        begin: the first day, as 2026-01-31.
        end: the last day.
        keys: what the auditor brings.
        system_namespace: where Chaperone runs.

    Raises:
        CannotAsk: the cluster does not give what is needed. CannotVerify: the days are none.
    """
    try:
        period = days(begin, end)
    except BadPeriod as error:
        raise CannotVerify(str(error)) from error
    where = place(cluster, namespace)
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if keys.trust is None:
                fetch_trust(cluster, system_namespace, folder / "trust.pem")
                keys = msgspec.structs.replace(keys, trust=folder / "trust.pem")
            if keys.log_policy is None:
                fetch_policy(cluster, folder / "log.policy")
                keys = msgspec.structs.replace(keys, log_policy=folder / "log.policy")
            for session in _sessions(cluster, where, period):
                bundle = folder / f"{session}.tar"
                progress(f"session {session}")
                fetch_bundle(cluster, proof_path(cluster, session, where), bundle)
                yield session, bundle, keys
                bundle.unlink()
        except CannotExport as error:
            raise CannotAsk(str(error)) from error
        finally:
            progress("")


def _sessions(cluster: Cluster, namespace: str, period: Period) -> list[str]:
    return [
        str(part(one, "metadata", "name"))
        for one in Asking(cluster, namespace).evidence("sessions")
        if period.overlaps(part(one, "status", "startedAt"), part(one, "status", "endedAt"))
    ]

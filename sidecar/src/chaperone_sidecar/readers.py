"""The readers of a gateway: for each target and database one, with its catalog and the masks of policy."""

from __future__ import annotations

from chaperone_sidecar.catalog import Catalog, Catalogs
from chaperone_sidecar.config import Target
from chaperone_sidecar.masking.maskers import Maskers
from chaperone_sidecar.protocols.postgresql.reading import Reader


class Readers:
    """What sessions of one target and database share.

    Args:
        catalogs: what is known of the databases.
    """

    def __init__(self, catalogs: Catalogs) -> None:
        self._catalogs = catalogs
        self._readers: dict[tuple[str, str], Reader] = {}
        self._maskers = Maskers(has_columns=True)

    def of(self, target: Target, database: str, mask_key: bytes) -> Reader:
        """The reader for a database as the client names it; masks that hash need the namespace's key.

        Raises:
            ConfigError: masks that cannot be obeyed; nothing may be shown then.
        """
        database = target.upstream.database or database
        catalog = self._catalogs.of(target, database)
        found = self._readers.get((target.name, database))
        if found is None or found.catalog is not catalog:  # its catalog was given up for others
            found = self._make(target, catalog, mask_key)
            self._readers[(target.name, database)] = found
        return found

    def shown_client(self, target: Target, name: str, mask_key: bytes) -> str:
        """What records may show of a name that a client gives itself, its user or its database.

        Raises:
            ConfigError: masks that cannot be obeyed.
        """
        masker = self._maskers.of(target, mask_key)
        if masker is None or name == target.upstream.database:
            return name
        from chaperone_sidecar.protocols.postgresql.shown import shown_client  # noqa: PLC0415

        return shown_client(masker, name)

    def clear(self) -> None:
        """Another configuration is in force."""
        self._readers.clear()
        self._maskers.clear()

    def _make(self, target: Target, catalog: Catalog, mask_key: bytes) -> Reader:
        masker = self._maskers.of(target, mask_key)
        if masker is None:
            return Reader(catalog)
        # RE2 takes 5 MiB: a gateway without masks does not load it.
        from chaperone_sidecar.protocols.postgresql.plan import Planner  # noqa: PLC0415
        from chaperone_sidecar.protocols.postgresql.results import Results  # noqa: PLC0415

        planner = Planner(masker, target.masks.unmaskable)
        return Reader(catalog, planner, Results(masker, planner, catalog), has_columns=masker.has_columns)

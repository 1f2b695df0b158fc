"""Where a store is kept: inside this process, on a ClickHouse server, or on a cluster of them."""

from dataclasses import dataclass
from pathlib import Path

from storage.cluster import CLIENT_SETTINGS
from storage.embedded import Embedded
from storage.engine import DEFAULT, Bounds, Engine
from storage.errors import StoreError
from storage.hosts import BadAddress, Hosts, hosts_of
from storage.server import Server
from storage.vocabulary import Vocabulary


class BadFooting(StoreError):
    """The store cannot be where the settings say. The text says why."""


@dataclass(frozen=True, slots=True)
class Footing:
    """`directory` is that of the store inside the process. `clickhouse` are addresses as `hosts_of` takes them."""

    directory: Path
    clickhouse: str | None = None
    user: str = "default"
    password_file: Path | None = None
    ca: Path | None = None
    cluster: str | None = None

    def open(self, vocabulary: Vocabulary, bounds: Bounds = DEFAULT) -> Engine:
        """The store. One on servers is not asked for before it is used. Raises BadFooting, StoreUnavailable."""
        return (
            Embedded(self.directory, vocabulary, bounds) if self.clickhouse is None else self.server(vocabulary, bounds)
        )

    def server(self, vocabulary: Vocabulary, bounds: Bounds = DEFAULT) -> Server:
        """The store on servers. Raises BadFooting."""
        try:
            password = self.password_file.read_text().strip() if self.password_file else ""
            settings = CLIENT_SETTINGS if self.cluster else None
            hosts = Hosts(hosts_of(self.clickhouse or ""), self.user, password, self.ca, settings)
        except BadAddress as error:
            raise BadFooting(str(error)) from error
        except OSError as error:
            raise BadFooting(f"cannot read the password in {self.password_file}: {error.strerror}") from error
        return Server(hosts, vocabulary, bounds, cluster=self.cluster)

"""What keeps the store within its rules: retention, erasures, and the sums of what is stored.

Everything here works in threads of its own, from `start` to `stop`, on what the other parts wrote.
"""

from collections.abc import Callable
from pathlib import Path

from storage.engine import Engine, Signal
from storage.erasure import Unloaded
from storage.erasures import Erasures
from storage.expiry import Expiry
from storage.pins import Pins
from storage.policies import RetentionPolicies
from storage.recounting import Recounting
from storage.retention_plan import RetentionPlans
from storage.vocabulary import Vocabulary
from storage.volumes import Volumes

_Load = Callable[[Path, str, Signal], None]


class Keeping:
    """These parts, of one process. `settled`, `unloaded` and `holders` are what storage/erasures.py says of them."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        settled: Callable[[], None],
        *,
        unloaded: Unloaded | None,
        holders: Callable[[], list[str]],
    ) -> None:
        self.erasures = Erasures(engine, vocabulary, settled, unloaded=unloaded, holders=holders)
        self.policies = RetentionPolicies(engine, vocabulary)
        self.volumes = Volumes(engine)
        self.recounting = Recounting(engine, self.volumes)
        self.pins = Pins(engine)
        self.expiry = Expiry(engine, self.policies, self.pins)
        self.plans = RetentionPlans(engine, vocabulary, self.policies, self.volumes, self.pins)

    def ruled(self, load: _Load) -> _Load:
        """The same load, by the newest policies, and not while an erasure looks for what it is to remove."""
        return self.erasures.gated(self.policies.refreshed(load))

    def start(self) -> None:
        """Begin."""
        self.erasures.start()
        self.recounting.start()
        self.expiry.start()

    def stop(self) -> None:
        """End after what is in hand. Call it before the engine is closed."""
        self.expiry.stop()
        self.recounting.stop()
        self.erasures.stop()

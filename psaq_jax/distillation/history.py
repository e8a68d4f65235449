"""The losses of a distillation, tick by tick, fetched from the devices when somebody looks."""

import jax
import numpy as np

from psaq_jax.errors import InputError

Terms = dict[str, list]


class History:
    """{"generator" or "student": {term: one scalar a tick}}."""

    def __init__(self):
        self._kinds: dict[str, Terms] = {}

    def add(self, kind: str, terms: dict[str, jax.Array]) -> None:
        found = self._kinds.setdefault(kind, {name: [] for name in terms})
        for name, value in terms.items():
            found[name].append(value)

    def tree(self) -> dict[str, dict[str, np.ndarray]]:
        """{kind: {term: [ticks] float32}}; kinds without a tick are left out."""
        self._kinds = jax.device_get(self._kinds)
        return {
            kind: {name: np.asarray(values, np.float32) for name, values in terms.items()}
            for kind, terms in self._kinds.items()
        }

    @classmethod
    def from_tree(cls, tree) -> "History":
        history = cls()
        history._kinds = {
            kind: {name: list(np.asarray(values)) for name, values in terms.items()} for kind, terms in tree.items()
        }
        return history

    def arrays(self) -> dict[str, np.ndarray]:
        """{"KIND/TERM": [ticks] float32}."""
        return {f"{kind}/{name}": values for kind, terms in self.tree().items() for name, values in terms.items()}

    def check(self) -> None:
        """Raises InputError at the first tick of its kind whose term is not finite."""
        for name, values in self.arrays().items():
            if not np.isfinite(values).all():
                at = int(np.argmax(~np.isfinite(values))) + 1
                rate = "synthesis.learning_rate" if name.startswith("generator") else "distillation.kernel_rate"
                raise InputError(f"distillation stopped: {name} is not finite at step {at}; lower {rate}")

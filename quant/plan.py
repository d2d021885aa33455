"""Say which setting quantizes which Linear of a model.

Responsible for the mapping alone: whether it suits a model is for whoever knows the model's Linears to check. May
assume settings that were validated when they were made. Knows Linears by their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quant.errors import QuantizationError
from quant.setting import Setting

MIXED = "mixed"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A setting for every Linear to quantize.

    Attributes:
        named: Settings by name of the Linear.
        others: The setting of every Linear that is not named; None where each has to be named.

    Raises:
        QuantizationError: If there is no setting at all, or one with a bit budget, which stands for a plan itself.
    """

    named: Mapping[str, Setting] = field(default_factory=dict)
    others: Setting | None = None

    def __post_init__(self) -> None:
        if not self.settings:
            raise QuantizationError("a plan needs at least one setting")
        if any(setting.is_allocated for setting in self.settings):
            raise QuantizationError("a setting with a bit budget stands for a plan; allocate its bits first")

    @classmethod
    def uniform(cls, setting: Setting) -> "Plan":
        """Return the plan that quantizes every Linear by `setting`."""
        return cls(others=setting)

    def setting_for(self, linear: str) -> Setting:
        """Return the setting of the Linear called `linear`.

        Raises:
            QuantizationError: If the plan has none for it.
        """
        setting = self.named.get(linear, self.others)
        if setting is None:
            raise QuantizationError(f"the plan has no setting for {linear}; name it, or give a setting for all others")
        return setting

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Return the distinct settings, that of the Linears without a name first."""
        settings = ((self.others,) if self.others is not None else ()) + tuple(self.named.values())
        return tuple(dict.fromkeys(settings))

    @property
    def only(self) -> Setting | None:
        """Return the setting of every Linear; None where they have different ones."""
        return self.settings[0] if len(self.settings) == 1 else None

    @property
    def is_uniform(self) -> bool:
        """Return whether every Linear has the same setting."""
        return self.only is not None

    @property
    def calibration_sizes(self) -> list[int]:
        """Return how many calibration samples its settings read, ascending; none where nothing is quantized."""
        return sorted({setting.n_calib for setting in self.settings if not setting.is_unquantized})

    @property
    def n_calib(self) -> int:
        """Return the most calibration samples that a setting needs."""
        return max(self.calibration_sizes, default=1)

    def label(self) -> str:
        """Return the settings' labels, for tables; of several, each recipe once with what it stores weights as."""
        if self.only is not None:
            return self.only.label()
        stored: dict[str, dict[str, None]] = {}
        for setting in sorted(self.settings, key=lambda setting: (setting.bits, -setting.group_size)):
            recipe = "" if setting.is_unquantized else replace(setting, bits=Setting.bits).label()
            stored.setdefault(recipe, {})[setting.stored_as] = None
        recipes = [recipe for recipe in stored if recipe]
        left = ", ".join(stored.get("", {}))
        labels = [f"{recipe} ({', '.join(stored[recipe])})" for recipe in recipes]
        return "; ".join([*labels, left] if left else labels)

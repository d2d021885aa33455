"""Words of numbers, settings and texts, as every table, card and sentence for people has them.

Responsible for how many digits there are and for the dash where there is no number.
"""

import math
from pathlib import PurePath

from hpo.study.confirmation import Interval
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import Measured
from objectives.paired import Difference

NOTHING = "–"
LONGEST_NAME = 24


def number(value: object, digits: int = 3) -> str:
    """Write a number for people: fixed digits, powers of ten for the very large, a dash for what is not one."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def percent_text(difference: Difference) -> str:
    """Write a difference in percent of perplexity: `-0.42 % [-0.61, -0.23]`."""
    return PERPLEXITY.change_text(difference)


def percent_interval(difference: Difference) -> Interval:
    """Convert a difference to percent of perplexity, for what is stored and printed."""
    return PERPLEXITY.change(difference)


def value_text(objective: Objective, measured: Measured) -> str:
    """Write what the objective is of a setting: `perplexity 33.142`, or `KL divergence 0.1056 nats per token` with it.

    Perplexity stands beside divergence, because that is what people know.
    """
    value = number(objective.of(measured), objective.digits)
    if objective == PERPLEXITY:
        return f"{objective.label} {value}"
    return f"{objective.label} {value} nats per token (perplexity {number(measured.perplexity)})"


def nats_interval(difference: Difference) -> Interval:
    """Convert a difference to nats per token, for what is stored and printed."""
    return Interval(value=difference.value, low=difference.low, high=difference.high)


def kl_interval(divergence: Difference | None) -> Interval | None:
    """Convert a divergence to nats per token, for what is stored and printed; None where there is none."""
    return None if divergence is None else nats_interval(divergence)


def flips_interval(share: Difference | None) -> Interval | None:
    """Convert a share of flips to percent of targets, for what is stored and printed; None where there is none."""
    if share is None:
        return None
    return Interval(value=100 * share.value, low=100 * share.low, high=100 * share.high)


def kl_text(divergence: Difference | None) -> str:
    """Write a divergence as tables have it: `0.1056 ±0.0042`."""
    return margin_text(kl_interval(divergence), 4)


def flips_text(share: Difference | None) -> str:
    """Write percent of flips as tables have it: `17.9 ±0.6`."""
    return margin_text(flips_interval(share), 1)


def interval_text(value: object, low: object, high: object) -> str:
    """Write `-0.42 % [-0.61, -0.23]`, with dashes for what is not finite."""
    return f"{_signed(value)} % [{_signed(low)}, {_signed(high)}]"


def margin_text(interval: Interval | None, digits: int) -> str:
    """Write `0.1056 ±0.0042`: a value and how far the ends of its interval are from it."""
    return NOTHING if interval is None else f"{interval.value:.{digits}f} ±{interval.high - interval.value:.{digits}f}"


def _signed(value: object) -> str:
    return f"{value:+.2f}" if isinstance(value, int | float) and math.isfinite(value) else NOTHING


def short_source(source: str) -> str:
    """Shorten a text's name as figures need it: of a file its name without folders, and no more than 24 letters."""
    path = PurePath(source)
    name = path.name if path.suffix and not source.startswith("hub:") else source
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def setting_text(measured: Measured) -> str:
    """Write the setting's label, with the calibration samples where its method reads them."""
    setting = measured.setting
    if setting is None or setting.definition.salience is None:
        return measured.label
    return f"{measured.label} n_calib={setting.n_calib}"

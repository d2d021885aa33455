"""Trials and scores made up for tests of what only reads them."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hpo.space.space import Space
from hpo.study.estimate import Estimate
from hpo.study.record import Measured, TrialRecord
from objectives.scoring import Score
from quant.setting import Setting


def trial(number: int, space: Space, setting: Setting, value: float | None, **changes: Any) -> TrialRecord:
    """A completed trial of that perplexity; `changes` make it something else."""
    fields: dict[str, Any] = {
        "name": f"trial {number}",
        "setting": setting,
        "perplexity": value,
        "result": f"result-{number}",
        "bits_per_weight": 4.25,
        "model_bytes": 1000,
        "seconds": {"quantize": 1.0, "score": 2.0},
        "number": number,
        "state": "COMPLETE",
        "params": space.params(setting),
        "origin": "gp",
        "outcome": "complete",
        "estimate": None,
        "reason": None,
        "running": {},
        "tokens": 100,
        "started": None,
        "finished": None,
    }
    return TrialRecord(**{**fields, **changes})


def pruned(number: int, space: Space, setting: Setting, estimate: float) -> TrialRecord:
    """A pruned trial that would probably have had that perplexity; its running value says nothing of it."""
    return trial(
        number,
        space,
        setting,
        None,
        state="PRUNED",
        outcome="stopped",
        running={8: 50.0},
        estimate=Estimate(mean_nll=math.log(estimate), standard_error=0.5 / estimate, degrees=50.0, against=0),
    )


def reference(setting: Setting) -> Measured:
    """A reference without values."""
    return Measured(
        name=setting.method,
        setting=setting,
        perplexity=None,
        result=None,
        bits_per_weight=4.25,
        model_bytes=1000,
        seconds={},
    )


def score(nats: Sequence[float] | torch.Tensor, tokens: int = 10, clusters: Sequence[int] | None = None) -> Score:
    """Mean nats per token of each sequence, all of `tokens` targets, each a document of its own unless told else."""
    values = torch.as_tensor(nats, dtype=torch.float64)
    documents = torch.arange(len(values)) if clusters is None else torch.tensor(clusters)
    return Score(nll=values * tokens, tokens=torch.full((len(values),), tokens), clusters=documents)

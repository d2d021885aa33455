"""A study: search space, sampler, pruner, worker, comparison, report.

Knows Optuna and `objectives`; tensors only as the per-sequence values of a score. Every decision about which setting
is tried next, whether a trial goes on and which one won is made here.
"""

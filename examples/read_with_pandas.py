"""Read a study's trials as a DataFrame, and ask of it what a table asks best.

Run `python examples/tune_and_deploy.py DIRECTORY` first, or name a study of your own:
`python examples/read_with_pandas.py [STUDY]`. A study can be read while it runs; a second.
"""

import sys

from hpo.notebook import load


def main() -> None:
    """States, the best trial of each group size, and what the time went into."""
    study = load(*sys.argv[1:])
    trials = study.trials()
    print(trials["state"].value_counts().to_string(), end="\n\n")

    complete = trials[trials["state"] == "COMPLETE"]
    best = complete.loc[complete.groupby("group_size")["perplexity"].idxmin()]
    print(best[["number", "group_size", "beta", "tau", "perplexity", "bits_per_weight"]].to_string(index=False))

    seconds = trials.filter(like="seconds_").sum()
    print(f"\nseconds in all:\n{seconds.round(2).to_string()}")
    trials.to_csv(sys.stdout, columns=["number", "state", "perplexity", "started", "finished"], index=False)


if __name__ == "__main__":
    main()

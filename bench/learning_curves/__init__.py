"""Does it save labels? Strategies x data sets x seeds, and what comes of them.

    python -m bench.learning_curves list            # experiments, data sets, strategies
    python -m bench.learning_curves run low         # appends to bench/results/learning_curves.csv
    python -m bench.learning_curves draw            # tables and pictures of docs/evidence.md

A *cell* is one strategy on one data set with one seed: a row of the CSV. All strategies of a seed
share the split, the first labels, the initial weights and the minibatches of every round.
"""

"""A learning curve: digits, ten labels at a time, at random, by margin and by look-ahead."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import ntkfast as nf

X, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
X = X.float() / 16
N_POOL, START, BATCH, ROUNDS, SEEDS = 1000, 20, 10, 7, 3


def trained(X, y):
    """Return a small network, trained on these labels alone."""
    layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    return model


# %%
# A strategy gets the trained model, the labelled points and the pool, and returns positions in the
# pool.


def at_random(model, X_labeled, y_labeled, X_pool):
    """Ask for any."""
    return torch.randperm(len(X_pool))[:BATCH]


def by_margin(model, X_labeled, y_labeled, X_pool):
    """Ask where the two most likely classes are closest."""
    largest = model(X_pool).softmax(1).topk(2).values
    return (largest[:, 0] - largest[:, 1]).argsort()[:BATCH]


def look_ahead(model, X_labeled, y_labeled, X_pool):
    """Ask for what the network would learn most from, as a batch."""
    learner = nf.LookAheadLearner(model, dim=1024).fit(X_labeled, y_labeled, X_pool)
    return learner.query(BATCH).indices


# %%
# All strategies start with the same labels, and train the network from the same beginning. Bands
# are from the worst to the best of the seeds; with so few of them, a curve is an impression and no
# proof (see the page on the evidence).

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
labels = START + BATCH * np.arange(ROUNDS + 1)
for strategy in (at_random, by_margin, look_ahead):
    accuracy = np.zeros((SEEDS, ROUNDS + 1))
    for seed in range(SEEDS):
        order = torch.tensor(np.random.default_rng(seed).permutation(len(X)))
        labeled, pool, test = order[:START], order[START:N_POOL], order[N_POOL:]
        for i in range(ROUNDS + 1):
            torch.manual_seed(seed)
            model = trained(X[labeled], y[labeled])
            accuracy[seed, i] = (model(X[test]).argmax(1) == y[test]).float().mean()
            picked = strategy(model, X[labeled], y[labeled], X[pool])
            labeled = torch.cat([labeled, pool[picked]])
            pool = pool[~torch.isin(pool, labeled)]
    (line,) = axis.plot(labels, accuracy.mean(0), marker="o", label=strategy.__name__)
    axis.fill_between(labels, accuracy.min(0), accuracy.max(0), color=line.get_color(), alpha=0.15)
    print(f"{strategy.__name__}: {accuracy[:, -1].mean():.3f} with {labels[-1]} labels")
axis.set(xlabel="labels", ylabel="accuracy on the other digits")
axis.legend()
plt.show()

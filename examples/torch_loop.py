"""A plain torch loop: train, ask for 20 labels, train again."""

import torch
from sklearn.datasets import load_digits

import ntkfast as nf

X, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
X = X.float() / 16
labeled, pool = torch.arange(20), torch.arange(20, 1000)
for _ in range(3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X[labeled]), y[labeled]).backward()
        optimizer.step()
    print(f"{len(labeled)} labels: {(model(X[1000:]).argmax(1) == y[1000:]).float().mean():.3f}")
    learner = nf.LookAheadLearner(model).fit(X[labeled], y[labeled], X[pool])
    picked = learner.query(20).indices  # positions in X[pool]
    left = torch.ones(len(pool), dtype=torch.bool)
    left[picked] = False
    labeled, pool = torch.cat([labeled, pool[picked]]), pool[left]

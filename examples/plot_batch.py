"""What is picked, and why: twelve groups of points, six labels, and the next six picks."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_blobs

import ntkfast as nf

X, group = make_blobs(400, centers=12, cluster_std=0.9, random_state=0)
X, y = torch.tensor(X / 5, dtype=torch.float32), torch.tensor(group % 3)
labeled = torch.cat([torch.where(y == c)[0][:2] for c in range(3)])

torch.manual_seed(0)
layers = [torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.01)
for _ in range(40):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(X[labeled]), y[labeled]).backward()
    optimizer.step()

# %%
# The points of interest are the pool, and a grid to draw maps on. Their tangent features and logits
# are all that ntkfast needs.

x_axis, y_axis = np.meshgrid(np.linspace(-2.4, 2.4, 70), np.linspace(-2.4, 2.4, 60))
grid = torch.tensor(np.stack([x_axis, y_axis], 2).reshape(-1, 2), dtype=torch.float32)
ntk = nf.EmpiricalNTK(model, sketch=None)
outputs, features = ntk.outputs_and_features(torch.cat([X, grid]))
post = nf.Posterior.from_features(
    features,
    outputs,
    features[labeled],
    outputs[labeled],
    y[labeled],
    loss="cross_entropy",
    labeled_indices=labeled,
)
pool, pixels = np.arange(len(X)), np.arange(len(X), len(X) + len(grid))

# %%
# The least certain points lie where two classes meet, many of them side by side: their labels say
# the same thing again. Look-ahead asks for the labels that would make the rest of the pool most
# certain, and after each pick, what is left to ask. It finds the groups without a label, those too
# that the network is sure of without a reason. Large points are labelled, numbers tell the order of
# the picks; the darker the ground, the more a label there is worth.

P = outputs.softmax(1)
two = P.topk(2).values
margin = two[:, 0] - two[:, 1]
free = np.setdiff1d(pool, labeled)
least_certain = free[margin[free].argsort()[:6]]
picked = nf.select(post, "fisher_variance_reduction", 6, candidates=pool, evaluation=pool).indices
utility = nf.utilities(post, "fisher_variance_reduction", candidates=pixels, evaluation=pool)

style = dict(cmap="Set1", vmin=0, vmax=8)  # red, blue, green
figure, axes = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
for axis, worth, batch, title in (
    (axes[0], 1 - margin[pixels], least_certain, "Least certain"),
    (axes[1], utility, picked, "Look-ahead"),
):
    ground = dict(cmap="Greys", vmin=0, vmax=1.6 * worth.max(), shading="gouraud")
    axis.pcolormesh(x_axis, y_axis, worth.reshape(x_axis.shape), **ground)
    axis.scatter(*X.T, c=y, s=8, **style)
    axis.scatter(*X[labeled].T, c=y[labeled], s=80, edgecolors="black", **style)
    for i, point in enumerate(X[batch], start=1):
        circle = dict(boxstyle="circle", facecolor="gold")
        axis.annotate(i, point, color="black", ha="center", va="center", bbox=circle)
    axis.set(title=title, xticks=[], yticks=[])
plt.show()

"""baal: its active-learning loop, with look-ahead in the place of a heuristic on predictions."""

import torch
from baal import ModelWrapper
from baal.active import ActiveLearningDataset
from baal.modelwrapper import TrainingArgs
from sklearn.datasets import load_digits

from ntkfast.integrations.baal import look_ahead_loop

X, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
torch.manual_seed(0)
dataset = ActiveLearningDataset(torch.utils.data.TensorDataset(X.float()[:600] / 16, y[:600]))
dataset.label(list(range(20)))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = torch.nn.CrossEntropyLoss()
wrapper = ModelWrapper(model, TrainingArgs(optimizer, epoch=50, workers=0, criterion=criterion))
loop = look_ahead_loop(wrapper, dataset, query_size=20)
for _ in range(3):
    wrapper.train_on_dataset(dataset)
    accuracy = (model(X.float() / 16).argmax(1) == y).float().mean()
    print(f"{len(dataset)} labels: {accuracy:.3f}")
    loop.step()  # labels 20 items of dataset.pool

"""The policy of supervised agents: it predicts what each number of even steps would give."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.networks.jump_extractor import CropEncoder, even_crops
from ddpm.util.checks import check_most, check_whole

# Networks of one agent at most.
MOST_MEMBERS = 64


class SchedulePredictor(nn.Module):
    """Predicts a metric of the result for each number of even steps. The price of a forward comes in afterwards.

    Args:
        forwards: numbers of even steps that it chooses among, rising. Samplers that look back want numbers that divide
            the plan's first step, since those are spaced exactly evenly.
        crop_size: side of the crops of the condition that are looked at; of a larger one the predictions for up to 3 x
            3 evenly spread crops are averaged, as the metric itself is an average over the picture.
        channels: of the convolutions.
        hidden: width of the layer between features and predictions.
        members: networks that are trained apart and whose predictions are averaged.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        forwards: Sequence[int],
        crop_size: int = 64,
        channels: Sequence[int] = (24, 48, 64),
        hidden: int = 64,
        members: int = 1,
    ) -> None:
        super().__init__()
        check_whole(crop_size=crop_size, hidden=hidden, members=members)
        check_most(MOST_MEMBERS, members=members)
        self.crop_size, self.forwards = crop_size, tuple(forwards)
        self.members = nn.ModuleList()
        for _ in range(members):
            encoder = CropEncoder(channels)
            layers = nn.Linear(encoder.features_dim, hidden), nn.ReLU(), nn.Linear(hidden, len(self.forwards))
            self.members.append(nn.Sequential(encoder, *layers))
        self.register_buffer("mean", torch.zeros(len(self.forwards)))
        self.register_buffer("scale", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    def set_training_mode(self, mode: bool) -> None:
        """Set the mode, as policies of Stable-Baselines3 do."""
        self.train(mode)

    def encode(self, condition: Tensor) -> Tensor:
        """Return the predicted metric (B, numbers) of conditions (B, 3, H, W), up to a constant for each picture."""
        crops = even_crops(condition.float(), self.crop_size)
        flat = crops.flatten(0, 1)
        predicted = torch.stack([member(flat) for member in self.members]).mean(dim=0)
        return self.mean + self.scale * predicted.unflatten(0, crops.shape[:2]).mean(dim=1)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return how good each number of even steps is, (B, numbers), the higher the better.

        Args:
            observations: "condition", (B, 3, H, W), and "price" of a forward, (B, 1).
        """
        forwards = torch.as_tensor(self.forwards, device=self.device)
        return -(self.encode(observations["condition"]) + observations["price"] * forwards)

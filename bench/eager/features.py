"""The losses between feature maps as their authors, or RepDistiller, write them."""

from __future__ import annotations

from torch import Tensor, nn

# ---- behind a BatchNorm ----


class HintBehindBatchNorm(nn.Module):
    """RepDistiller's regressor without its convolution, and its hint loss."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.relu, self.loss = nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.MSELoss()

    def forward(self, features: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(self.relu(self.bn(features)), teacher)

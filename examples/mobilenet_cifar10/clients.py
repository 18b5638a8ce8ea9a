"""What the clients train."""

from torch import nn
from torchvision.models import mobilenet_v3_small


def network(classes: int = 10) -> nn.Module:
    """Return MobileNetV3-small with initial weights: (b, 3, 32, 32) to (b, classes) logits."""
    return mobilenet_v3_small(num_classes=classes)

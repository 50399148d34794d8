"""The small networks we train."""

from .unet import RestorationNet as RestorationNet

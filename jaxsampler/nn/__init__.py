"""The small networks we train."""

from .small_images import Classifier as Classifier
from .small_images import ClassUNet as ClassUNet
from .small_images import EDMNet as EDMNet
from .small_images import FlowNet as FlowNet
from .unet import RestorationNet as RestorationNet

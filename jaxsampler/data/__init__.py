"""Real photographs, ten ways to damage them, training pairs of both; Fashion-MNIST; a folder of images."""

from . import fashion, folder
from .degradations import TASKS, VERBS, degrade, random_mask, task_name
from .image_files import Form, load_image, save_image
from .pairs import batch
from .photos import Photo, held_out_photos, training_photos

__all__ = [
    "TASKS",
    "VERBS",
    "Form",
    "Photo",
    "batch",
    "degrade",
    "fashion",
    "folder",
    "held_out_photos",
    "load_image",
    "random_mask",
    "save_image",
    "task_name",
    "training_photos",
]

"""What a user brings to a task, and into what its layers are cut: options that all commands that make one share."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from quantenv.tasks import TaskSource

Options = TypeVar("Options", bound="SourceOptions")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Data, network and weights, for tasks that do not bring their own."""

    data: str | None = None
    """Folder of the data. Of task imagefolder: with train/ and val/, each with a folder of images for each class; or
    with a folder for each class, of which two fifths are then held out. Of cifar10, cifar100, fashionmnist and mnist:
    where torchvision put them; by default $QUANTENV_DATA, or downloaded to the cache."""
    model: str | None = None
    """Network. Of task imagefolder: torchvision:NAME, a classification network of torchvision; or module:function, a
    function of yours that returns it. Of cifar10, cifar100, fashionmnist and mnist: resnet20 (the default), resnet32,
    resnet56 or mobilenet_v2."""
    weights: str | None = None
    """File of the network's state dict, by torch.save. Of imagefolder also DEFAULT: those that torchvision publishes.
    Of cifar10 and its like, by default, what `quantenv pretrain` trained."""
    image_size: int | None = None
    """Of task imagefolder: height and width that images are brought to, instead of how torchvision's published weights
    of the network want them."""
    max_images: int | None = None
    """Of task imagefolder: images to keep in memory for each of fine-tuning, searching and testing, drawn at random; by
    default as many as take 1 GiB, for searching 2,000 at most."""
    channel_groups: int | dict[str, int] | None = None
    """Groups into which each layer's output channels are cut, the most sensitive first, each with weight bits of its
    own; or groups by layer name, as {classifier: 2}. By default all layers are whole."""
    least_channels: int | None = None
    """With --channel_groups: channels that each group has at least; layers with few channels get fewer groups."""
    prepared: str | None = None
    """File of the task's prepared network, by `quantenv prepare`, such as one made on another machine: the numbers are
    then those that it has there. By default what ships, was kept, or is prepared now."""

    @property
    def source(self) -> "TaskSource":
        """What `quantenv.tasks.get_task` takes."""
        from quantenv.tasks import TaskSource  # torch: not for --help

        here = with_absolute_paths(self)
        return TaskSource(**{field.name: getattr(here, field.name) for field in dataclasses.fields(SourceOptions)})


#: Names of these options.
SOURCE = tuple(field.name for field in dataclasses.fields(SourceOptions))


def with_absolute_paths(options: Options) -> Options:
    """Returns options that mean the same from every folder, to be kept with a run."""
    from quantenv.tasks.source import absolute

    return dataclasses.replace(
        options, data=absolute(options.data), weights=absolute(options.weights), prepared=absolute(options.prepared)
    )

"""What torch.hub finds here:

torch.hub.load(<this folder>, "mlif", "resnet20_w0.25_cifar10", source="local")
"""

from inputs.pretrained import from_pretrained

dependencies = ["numpy", "torch", "torchvision"]


def mlif(name):
    """A trained M-LIF network in eval mode: normalised images [B, 3, H, W] -> [B, classes].

    With it come `classes`, `mean`, `std` and `transform`, which makes an image of a picture.

    Args:
        name: of trained_models/zoo/zoo.csv, such as resnet20_w0.25_cifar10; or a checkpoint.
    """
    return from_pretrained(name)

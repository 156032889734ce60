"""What would be moved from a GPU to the CPU, counted where there is no GPU."""

import torch
from torch.overrides import TorchFunctionMode


class Moved(TorchFunctionMode):
    """Inside the `with` block, `sizes` collects the bytes of each tensor on which `.cpu()`, `.to("cpu")` or
    `.numpy(force=True)` is called, although a tensor that is on the CPU stays where it is."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = function is torch.Tensor.to and any(
            str(value) == "cpu" for value in (*args[1:], *kwargs.values()) if isinstance(value, str | torch.device)
        )
        if to_cpu or function is torch.Tensor.cpu or (function is torch.Tensor.numpy and kwargs.get("force")):
            self.sizes.append(args[0].nbytes)
        return function(*args, **kwargs)

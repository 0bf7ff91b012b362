"""Random crops and mirror images for targets that are maps over the pixels.

As in the released code of MTAN (Liu et al., CVPR 2019) and of Recon for CityScapes and NYUv2: a
part of the image is enlarged to the full size, and half of the images are mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.common.multi_task import Task

SCALES = (1.0, 1.2, 1.5)


def scale_crop_flip(
    images: Tensor,
    targets: Mapping[str, Tensor],
    tasks: Sequence[Task],
    generator: torch.Generator,
    scales: Sequence[float] = SCALES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A random part of every image and of its maps at the full size, mirrored or not.

    The image is interpolated. Maps are not, as a mean of two classes, or of a depth and of no
    depth, means nothing: each pixel takes the value of the nearest one. Depth is divided by the
    scale, as what is enlarged looks nearer; of normals the x component changes its sign in a
    mirror.

    Args:
        images: ``(n, channels, h, w)``.
        targets: task -> maps with the same height and width, in the form of
            :class:`data_prep.common.multi_task.Task`.
        tasks: what the targets are; none of the kind ``classes``.
        generator: draws scale, place and mirror, on the CPU.
        scales: one is drawn for every image; at least 1.

    Raises:
        ValueError: a task has classes in place of maps, or a scale is below 1.
    """
    kinds = {task.name: task.kind for task in tasks}
    flat = sorted(name for name, kind in kinds.items() if kind == "classes")
    if flat:
        raise ValueError(f"tasks must have maps as targets. Found classes in {flat}.")
    if min(scales) < 1:
        raise ValueError(f"scales must be at least 1. Found scales={tuple(scales)}.")
    count, _, height, width = images.shape
    found, maps = [], {name: [] for name in targets}  # type: ignore[var-annotated]
    for row in range(count):
        scale = scales[int(torch.randint(len(scales), (), generator=generator))]
        high, wide = int(height / scale), int(width / scale)
        top = int(torch.randint(height - high + 1, (), generator=generator))
        left = int(torch.randint(width - wide + 1, (), generator=generator))
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        window = (..., slice(top, top + high), slice(left, left + wide))
        image = F.interpolate(
            images[row][window][None], (height, width), mode="bilinear", align_corners=True
        )[0]
        found.append(image.flip(-1) if mirrored else image)
        rows = torch.arange(height) * high // height
        columns = torch.arange(width) * wide // width
        for name, values in targets.items():
            chosen = values[row][window][..., rows, :][..., columns]
            if kinds[name] == "depth":
                chosen = chosen / scale
            if mirrored:
                chosen = chosen.flip(-1)
                if kinds[name] == "normals":
                    chosen = chosen * chosen.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
            maps[name].append(chosen)
    return torch.stack(found), {name: torch.stack(values) for name, values in maps.items()}

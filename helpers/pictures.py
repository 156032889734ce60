"""Pictures for models that see: which places of the prompt are theirs, and the tensors that go with it.

GLM-4V puts a picture's patches into the prompt by itself, and takes `pixel_values` (helpers.glm). GLM-4.1V, and
others of `transformers` that work alike (Qwen2-VL and its successors), want the picture's token in the prompt once
for every vector that their tower makes of the picture, beside the tensors of its patches.
"""

from helpers.errors import BadInputError


class PictureProcessor:
    """A tokenizer and an image processor, for models whose own processor needs packages that only videos need."""

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer


def check_sees(model, processor):
    """`BadInputError` unless pictures can be given to this model with this processor (or tokenizer)."""
    if getattr(processor, "image_processor", None) is None:
        sees = getattr(model.config, "vision_config", None) is not None
        raise BadInputError(
            "This model sees, but a tokenizer alone takes no pictures: give load_processor(name) in its place."
            if sees
            else "This model does not see: leave the picture away, or load one that does, such as glm-4v-9b, with its "
            "processor."
        )
    if not _places_its_own(model) and not hasattr(processor.image_processor, "merge_size"):
        raise BadInputError(
            f"Pictures work with GLM-4V and GLM-4.1V here, not with {type(model).__name__}: leave the picture away."
        )


def picture_inputs(model, processor, rows, pictures):
    """(ids of each row, what `forward` takes besides) for prompts with pictures.

    `rows` are lists of ids in which each picture has one token, `pictures` the list of each row's pictures in
    reading order (what `open_picture` of helpers.glm takes). What comes back has, for GLM-4V, `pixel_values
    [picture, channel, height, width]`; for the others `pixel_values [patch, numbers]` of all pictures, their
    `image_grid_thw [picture, 3]` (frames, rows and columns of patches), and `mm_token_type_ids`, a list for each row:
    1 where a picture is.

    Raises `BadImageError` for a picture that cannot be read, and `BadInputError` for a model that takes none, or a
    prompt with more or fewer places than pictures.
    """
    from helpers.glm.processing import open_picture

    check_sees(model, processor)
    opened = [open_picture(picture) for of_row in pictures for picture in of_row]
    if _places_its_own(model):
        return rows, {"pixel_values": processor.image_processor(opened)["pixel_values"]}
    place = model.config.image_token_id
    for row, of_row in zip(rows, pictures, strict=True):
        if row.count(place) != len(of_row):
            raise BadInputError(
                f"The prompt has {row.count(place)} places for {len(of_row)} pictures: this model's chat template "
                "gives each picture one, so ask through it (messages, not a plain text)."
            )
    encoded = processor.image_processor(opened, return_tensors="pt")
    sizes = iter((encoded["image_grid_thw"].prod(dim=-1) // processor.image_processor.merge_size**2).tolist())
    rows = [[token for one in row for token in ([one] * next(sizes) if one == place else [one])] for row in rows]
    tensors = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
    return rows, tensors | {"mm_token_type_ids": [[int(token == place) for token in row] for row in rows]}


def _places_its_own(model):
    return hasattr(model, "expand_inputs")

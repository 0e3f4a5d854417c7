"""A node of one's own: kosmograph run WORKFLOW --python-nodes sepia.py"""


class Sepia:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "tone", "examples"

    def tone(self, image, strength):
        brown = image.mean(-1)[..., None] * 0.9 + image * 0 + 0.05  # torch or numpy: both have these
        brown[..., 2] *= 0.7
        return (image * (1 - strength) + brown * strength,)


NODE_CLASS_MAPPINGS = {"Sepia": Sepia}

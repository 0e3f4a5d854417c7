import os
import sys

# This file has its name.
sys.path.pop(0)
from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper  # noqa: E402

pictures = ComfyApiWrapper(os.environ["SERVER"] + "/").queue_and_wait_images(ComfyWorkflowWrapper(os.environ["WORKFLOW"]), "Save")
open(os.environ["RESULT"], "wb").write(next(iter(pictures.values())))

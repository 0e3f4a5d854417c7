import os
from comfyuiclient import ComfyUIClient

client = ComfyUIClient(os.environ["SERVER"].removeprefix("http://"), os.environ["WORKFLOW"])
client.connect()
pictures, _ = client.get_images(client.comfyui_prompt)
client.close()
open(os.environ["RESULT"], "wb").write(next(iter(pictures.values()))[0])

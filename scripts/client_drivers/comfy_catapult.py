import asyncio
import json
import os
import sys
import urllib.request
import uuid

sys.path.pop(0)
from comfy_catapult.api_client import ComfyAPIClient  # noqa: E402
from comfy_catapult.catapult import ComfyCatapult  # noqa: E402


async def main():
    async with ComfyAPIClient(comfy_api_url=os.environ["SERVER"] + "/") as client:
        async with ComfyCatapult(comfy_client=client, debug_path=None) as catapult:
            workflow = json.load(open(os.environ["WORKFLOW"]))
            _, future = await catapult.Catapult(
                job_id=str(uuid.uuid4()), prepared_workflow=workflow, important=["23"], use_future_api=True)
            history = await future
            name = history["outputs"]["23"]["images"][0]["filename"]
            open(os.environ["RESULT"], "wb").write(urllib.request.urlopen(f"{os.environ['SERVER']}/view?filename={name}").read())


asyncio.run(main())

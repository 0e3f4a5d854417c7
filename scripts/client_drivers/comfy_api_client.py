"""Its watcher calls a method that the client does not have (get_future_with_retry; there is one with an underscore in
front), whatever the server says. So the job is waited for in the history, with the client's other methods."""
import asyncio
import json
import os
import sys

sys.path.pop(0)
from comfy_api_client import create_client  # noqa: E402


async def main():
    async with create_client(os.environ["SERVER"], start_state_tracker=None) as client:
        await client.get_system_stats()
        prompt = await client.submit_workflow(json.load(open(os.environ["WORKFLOW"])), return_future=False)
        await client.get_queue()
        while prompt.prompt_id not in await client.get_history(prompt.prompt_id):
            await asyncio.sleep(0.1)
        item = (await client.fetch_results(prompt)).output_images[0]
        # It hands out a picture and no bytes: they are fetched under the name that it has.
        picture = await client.client.get(f"{os.environ['SERVER']}/view?filename={item.filename}&type=output")
        open(os.environ["RESULT"], "wb").write(picture.content)


asyncio.run(main())

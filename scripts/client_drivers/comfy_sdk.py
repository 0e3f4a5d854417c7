import os
import sys

sys.path.pop(0)
os.environ.setdefault("COMFY_BASE_URL", os.environ["SERVER"])
from comfy_sdk import Comfy  # noqa: E402

client = Comfy(api_key="none")
job = client.submit(client.workflows.from_file(os.environ["WORKFLOW"]))
kinds = [type(event).__name__ for event in job.events()]
assert kinds[-1] == "StatusChange", kinds
job.result()
open(os.environ["RESULT"], "wb").write(job.outputs[0].to_bytes())

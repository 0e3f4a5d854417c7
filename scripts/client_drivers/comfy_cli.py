import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

port = os.environ["SERVER"].rsplit(":", 1)[1]
command = [Path(sys.executable).with_name("comfy"), "--skip-prompt", "--json", "run", "--wait", "--workflow", os.environ["WORKFLOW"],
           "--host", "127.0.0.1", "--port", port]
said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
told = json.loads(said.strip().splitlines()[-1])
assert told["ok"], told["error"]
Path(os.environ["RESULT"]).write_bytes(urllib.request.urlopen(told["data"]["outputs"][0]).read())

import json, os, sys, types

with os.fdopen(0, "rb", closefd=False) as file:
    told = json.load(file)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.close(nothing)
names = {"__name__": "__kosmograph__", "GIVEN": told["given"]}
for part, name in (("describe", "describe"), ("values", "values_module"), ("shim", "shim"), ("schema", "schema"), ("extras", "extras")):
    module = names[name] = types.ModuleType("kosmograph_" + part)
    exec(compile(told[part], "<kosmograph>/%s.py" % part, "exec"), module.__dict__)
exec(compile(told["bridge"], "<kosmograph>/bridge.py", "exec"), names)

"""Nodes that say what they are by a schema, for tests/tests/python_nodes.rs."""

from comfy_api.latest import ComfyExtension, io, ui


class SchemaCount(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        sizes = io.DynamicCombo.Input("size", options=[
            io.DynamicCombo.Option("small", []), io.DynamicCombo.Option("own", [io.Int.Input("width", default=7, min=1, max=9)])])
        words = io.Autogrow.Input("words", template=io.Autogrow.TemplatePrefix(io.String.Input("word", force_input=True), prefix="word", min=1, max=3))
        return io.Schema(
            node_id="SchemaCount", display_name="Counts", category="tests", description="Says what it was given.",
            inputs=[io.String.Input("text", default="x", multiline=True, tooltip="a text"), io.Combo.Input("choice", options=["a", "b"]), sizes, words],
            outputs=[io.String.Output(display_name="told"), io.Int.Output(id="count", is_output_list=True)],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def validate_inputs(cls, text):
        return True if text != "bad" else "no text is bad"

    @classmethod
    def fingerprint_inputs(cls, text, **_):
        return text

    @classmethod
    async def execute(cls, text, choice, size, words):
        told = (text, choice, sorted(size.items()), sorted(words.items()), cls.hidden.unique_id)
        return io.NodeOutput(repr(told), [1, 2], ui=ui.PreviewText("shown"))


class SchemaShow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        match = io.MatchType.Template("any", [io.String, io.Int])
        return io.Schema(node_id="SchemaShow", inputs=[io.MatchType.Input("value", template=match)], outputs=[], is_input_list=True, is_output_node=True)

    @classmethod
    def execute(cls, value):
        return io.NodeOutput(ui={"shown": [repr(value)]})


class SchemaExtension(ComfyExtension):
    async def get_node_list(self):
        return [SchemaCount, SchemaShow]


async def comfy_entrypoint():
    return SchemaExtension()

"""The modules of ComfyUI that most packs import, as far as they can be had without ComfyUI.

What is here is of our own making and does what the names say. Anything else below `comfy` and its neighbours can be
imported, so that a pack that uses it in one node can show the others, and says its name when it is used.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types

# What can be imported of ComfyUI without being there.
ROOTS = frozenset(
    "comfy comfy_extras comfy_execution comfy_api latent_preview node_helpers execution app api_server comfy_config "
    "comfy_api_nodes custom_nodes cuda_malloc utils_comfy main aiohttp".split()
)
# What ComfyUI's server stands on, and packs therefore import for their routes, which nobody asks for here.
SERVERS = "aiohttp"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Unavailable(Exception):
    pass


class Interrupted(Exception):
    """The job was cancelled. `comfy.model_management.InterruptProcessingException` in a pack."""


class Missing:
    """Something of ComfyUI that is not here."""

    is_missing_part_of_comfyui = True

    def __init__(self, path):
        self.__dict__["path"] = path

    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Missing("%s.%s" % (self.path, name))

    def _fail(self, *_, **__):
        who = "which this Python does not have" if self.path.split(".")[0] == SERVERS else "which only ComfyUI has"
        raise Unavailable("it wants %s, %s" % (self.path, who))

    __call__ = __iter__ = __len__ = __getitem__ = __setitem__ = __contains__ = __enter__ = _fail
    __add__ = __radd__ = __or__ = __ror__ = __int__ = __float__ = __index__ = __lt__ = __gt__ = _fail

    def __setattr__(self, name, value):
        self._fail()

    def __mro_entries__(self, bases):
        return ()

    def __instancecheck__(self, other):
        return False

    def __subclasscheck__(self, other):
        return False

    def __bool__(self):
        return False

    def __repr__(self):
        return "<%s of ComfyUI, which is not here>" % self.path


class MissingModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Missing("%s.%s" % (self.__name__, name))


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Behind all others: what is below ComfyUI's names and nowhere else."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ROOTS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return MissingModule(spec.name)

    def exec_module(self, module):
        module.__path__ = []


class Shim:
    """Makes the modules. `host` has progress(step, steps), cancelled() and the folders."""

    def __init__(self, host, folders):
        self.host = host
        self.folders = folders
        self.listed = False  # whether a list of files was asked for, which may be another one tomorrow

    def install(self, schema, extras):
        sys.meta_path.append(Finder())
        comfy = self.package("comfy")
        for name, make in (("utils", self.utils), ("model_management", self.management), ("cli_args", self.arguments)):
            module = self.module("comfy." + name, MissingModule)
            make(module)
            setattr(comfy, name, module)
        samplers = self.module("comfy.samplers", MissingModule)
        self.samplers(samplers)
        comfy.samplers = samplers
        self.folder_paths(self.module("folder_paths"))
        self.nodes(self.module("nodes", MissingModule))
        self.server(self.module("server", MissingModule))
        self.package("comfy_api")
        schema.install(self.package, Missing)
        extras.install(self, Unavailable)

    def package(self, name):
        """A module below which others can be, known to the one above it."""
        module = self.module(name, MissingModule)
        module.__path__ = []
        above, _, last = name.rpartition(".")
        if above in sys.modules:
            setattr(sys.modules[above], last, module)
        return module

    @staticmethod
    def module(name, kind=types.ModuleType):
        module = kind(name)
        module.__file__ = "<kosmograph>/%s.py" % name.replace(".", "/")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=name == "comfy")
        sys.modules[name] = module
        return module

    # ---- folder_paths ----

    def folder_paths(self, module):
        shim = self
        given = self.folders
        first = lambda paths, other: paths[0] if paths else other
        models = first(given.get("models", []), os.path.join(os.getcwd(), "models"))
        module.base_path = os.path.dirname(models) or os.getcwd()
        module.models_dir = models
        module.output_directory = given.get("output", os.path.join(os.getcwd(), "output"))
        module.temp_directory = given.get("temp", os.path.join(os.getcwd(), "temp"))
        module.input_directory = first(given.get("input", []), os.path.join(os.getcwd(), "input"))
        module.user_directory = os.path.join(module.temp_directory, "user")
        module.supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
        names = module.folder_names_and_paths = {
            kind: (list(paths), set(module.supported_pt_extensions)) for kind, paths in given.get("kinds", {}).items()
        }
        names.setdefault("custom_nodes", ([os.path.dirname(given["pack"])], set()))
        module.filename_list_cache = {}
        old = {"unet": "diffusion_models", "clip": "text_encoders"}

        def kind_of(name):
            return name if name in names else old.get(name, name)

        def get_folder_paths(folder_name):
            return list(names.get(kind_of(folder_name), ([], set()))[0])

        def add_model_folder_path(folder_name, full_folder_path, is_default=False):
            paths, _ = names.setdefault(folder_name, ([], set()))
            if full_folder_path not in paths:
                paths.insert(0 if is_default else len(paths), full_folder_path)

        def recursive_search(directory, excluded_dir_names=None):
            files, seen = [], {}
            for folder, folders, there in os.walk(directory, followlinks=True):
                folders[:] = sorted(name for name in folders if name not in (excluded_dir_names or ()))
                real = os.path.realpath(folder)
                if real in seen:
                    folders[:] = []
                    continue
                seen[real] = 0.0
                files += [os.path.relpath(os.path.join(folder, name), directory) for name in there]
            return files, seen

        def filter_files_extensions(files, extensions):
            return sorted(file for file in files if not extensions or os.path.splitext(file)[-1].lower() in extensions)

        def get_filename_list(folder_name):
            shim.listed = True
            paths, extensions = names.get(kind_of(folder_name), ([], set()))
            found = set()
            for path in paths:
                found.update(filter_files_extensions(recursive_search(path, [".git"])[0], extensions))
            return sorted(found)

        def get_full_path(folder_name, filename):
            for path in get_folder_paths(folder_name):
                full = os.path.join(path, os.path.relpath(os.path.join("/", filename), "/"))
                if os.path.isfile(full):
                    return full
            return None

        def get_full_path_or_raise(folder_name, filename):
            full = get_full_path(folder_name, filename)
            if full is None:
                raise FileNotFoundError("the folders of %s have no file %s" % (folder_name, filename))
            return full

        def annotated_filepath(name):
            for mark, folder in (("[output]", "output"), ("[input]", "input"), ("[temp]", "temp")):
                if name.endswith(mark):
                    return name[: -len(mark) - 1], getattr(module, folder + "_directory")
            return name, None

        def get_annotated_filepath(name, default_dir=None):
            name, folder = annotated_filepath(name)
            if folder is not None or default_dir is not None:
                return os.path.join(folder or default_dir, name)
            # The host looks for pictures in several places; the first that has it is meant.
            places = given.get("input", []) or [module.input_directory]
            there = [os.path.join(place, name) for place in places if os.path.exists(os.path.join(place, name))]
            return there[0] if there else os.path.join(places[0], name)

        def exists_annotated_filepath(name):
            return os.path.exists(get_annotated_filepath(name))

        def filter_files_content_types(files, content_types):
            shim.listed = True
            import mimetypes

            wanted = lambda file: (mimetypes.guess_type(file)[0] or "").split("/")[0] in content_types
            return [file for file in files if wanted(file)]

        def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
            import time

            now = time.localtime()
            parts = {"width": image_width, "height": image_height, "year": now.tm_year, "month": "%02d" % now.tm_mon,
                     "day": "%02d" % now.tm_mday, "hour": "%02d" % now.tm_hour, "minute": "%02d" % now.tm_min,
                     "second": "%02d" % now.tm_sec}
            for key, value in parts.items():
                filename_prefix = filename_prefix.replace("%%%s%%" % key, str(value))
            subfolder = os.path.dirname(os.path.normpath(filename_prefix))
            filename = os.path.basename(os.path.normpath(filename_prefix))
            folder = os.path.join(output_dir, subfolder)
            root = os.path.abspath(output_dir)
            if os.path.commonpath((root, os.path.abspath(folder))) != root:
                raise ValueError("the prefix %s leads out of the folder %s" % (filename_prefix, output_dir))
            os.makedirs(folder, exist_ok=True)
            counter = 0
            for name in os.listdir(folder):
                rest = name[len(filename) + 1 :].split("_")[0].split(".")[0]
                if name.startswith(filename + "_") and rest.isdigit():
                    counter = max(counter, int(rest))
            return folder, filename, counter + 1, subfolder, filename_prefix

        for name in ("output", "temp", "input", "user"):
            setattr(module, "get_%s_directory" % name, lambda name=name: getattr(module, name + "_directory"))
            setattr(module, "set_%s_directory" % name, lambda path, name=name: setattr(module, name + "_directory", path))
        module.get_directory_by_type = lambda kind: getattr(module, "%s_directory" % kind, None)
        module.map_legacy = kind_of
        module.get_input_files = lambda: sorted(os.listdir(module.input_directory))
        here = dict(locals())
        for name in ("get_folder_paths", "add_model_folder_path", "recursive_search", "filter_files_extensions", "get_filename_list",
                     "get_full_path", "get_full_path_or_raise", "annotated_filepath", "get_annotated_filepath",
                     "exists_annotated_filepath", "filter_files_content_types", "get_save_image_path"):
            setattr(module, name, here[name])

    # ---- comfy.* ----

    def utils(self, module):
        host = self.host

        class ProgressBar:
            def __init__(self, total, node_id=None):
                self.total, self.current = total, 0

            def update_absolute(self, value, total=None, preview=None):
                if total is not None:
                    self.total = total
                self.current = min(value, self.total)
                host.progress(self.current, self.total)

            def update(self, value):
                self.update_absolute(self.current + value)

        def common_upscale(samples, width, height, upscale_method, crop):
            """[B, C, H, W] at another size; "center" cuts what is too long to the new proportions first."""
            import torch

            if crop == "center":
                wide, high = samples.shape[-1], samples.shape[-2]
                left = top = 0
                if wide / high > width / height:
                    left = round((wide - wide * (width / height) / (wide / high)) / 2)
                elif wide / high < width / height:
                    top = round((high - high * (wide / high) / (width / height)) / 2)
                samples = samples.narrow(-2, top, high - top * 2).narrow(-1, left, wide - left * 2)
            if upscale_method == "lanczos":
                import numpy
                from PIL import Image

                rows = []
                for row in samples.movedim(1, -1).cpu():
                    picture = Image.fromarray(numpy.clip(255.0 * row.numpy(), 0, 255).astype(numpy.uint8).squeeze())
                    array = numpy.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)).astype("float32") / 255.0
                    rows.append(torch.from_numpy(array.reshape(height, width, -1)).movedim(-1, 0))
                return torch.stack(rows).to(samples.device, samples.dtype)
            if upscale_method == "bislerp":
                return module.bislerp(samples, width, height)
            return torch.nn.functional.interpolate(samples, size=(height, width), mode=upscale_method)

        def load_torch_file(path, safe_load=True, device=None, return_metadata=False):
            if str(path).lower().endswith((".safetensors", ".sft")):
                from safetensors.torch import load_file

                state = load_file(path)
            else:
                import torch

                state = torch.load(path, map_location=device or "cpu", weights_only=True)
            return (state, None) if return_metadata else state

        def repeat_to_batch_size(tensor, batch_size, dim=0):
            if tensor.shape[dim] >= batch_size:
                return tensor.narrow(dim, 0, batch_size)
            times = -(-batch_size // tensor.shape[dim])
            return tensor.repeat([times if axis == dim else 1 for axis in range(tensor.dim())]).narrow(dim, 0, batch_size)

        def set_progress_bar_global_hook(_):
            pass

        module.PROGRESS_BAR_ENABLED = True
        module.ProgressBar = ProgressBar
        module.common_upscale = common_upscale
        module.load_torch_file = load_torch_file
        module.repeat_to_batch_size = repeat_to_batch_size
        module.set_progress_bar_global_hook = set_progress_bar_global_hook

    def management(self, module):
        host = self.host

        def device(*_, **__):
            import torch

            return torch.device("cpu")

        def full(*_, **__):
            import torch

            return torch.float32

        def throw_exception_if_processing_interrupted():
            if host.cancelled():
                raise Interrupted()

        def get_free_memory(*_, **__):
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

        for name in ("get_torch_device", "intermediate_device", "unet_offload_device", "vae_device", "vae_offload_device",
                     "text_encoder_device", "text_encoder_offload_device", "unet_inital_load_device"):
            setattr(module, name, device)
        for name in ("unet_dtype", "vae_dtype", "text_encoder_dtype", "intermediate_dtype"):
            setattr(module, name, full)
        module.InterruptProcessingException = Interrupted
        module.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
        module.processing_interrupted = host.cancelled
        module.interrupt_current_processing = lambda value=True: None
        module.get_torch_device_name = lambda _=None: "cpu"
        module.get_free_memory = module.get_total_memory = get_free_memory
        module.OOM_EXCEPTION = MemoryError
        for name in ("soft_empty_cache", "unload_all_models", "free_memory", "load_models_gpu", "cleanup_models"):
            setattr(module, name, lambda *_, **__: None)
        for name in ("should_use_fp16", "should_use_bf16", "xformers_enabled", "is_device_mps", "is_device_cuda", "is_nvidia"):
            setattr(module, name, lambda *_, **__: False)
        for name in ("is_intel_xpu", "directml_enabled", "pytorch_attention_enabled", "sage_attention_enabled",
                     "device_supports_non_blocking", "supports_cast", "supports_fp8_compute"):
            setattr(module, name, lambda *_, **__: False)
        module.is_device_cpu = module.cpu_mode = lambda *_: True
        module.get_autocast_device = lambda *_: "cpu"
        module.cast_to_device = lambda tensor, device, dtype, copy=False: tensor.to(device=device, dtype=dtype, copy=copy)
        module.dtype_size = lambda dtype: dtype.itemsize
        module.module_size = lambda part: sum(value.nbytes for value in part.state_dict().values())
        module.current_loaded_models = []

    @staticmethod
    def arguments(module):
        known = dict(disable_metadata=False, cpu=True, lowvram=False, highvram=False, listen="127.0.0.1", port=8188,
                     preview_method="none", output_directory=None, input_directory=None, base_directory=None,
                     deterministic=False, fast=False, verbose="INFO", enable_manager=False)
        module.args = types.SimpleNamespace(**known)

    @staticmethod
    def samplers(module):
        # The names, for lists of choices; what samples is the host's.
        names = ("euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 dpm_2 dpm_2_ancestral lms dpm_fast "
                 "dpm_adaptive dpmpp_2s_ancestral dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_3m_sde "
                 "dpmpp_3m_sde_gpu ddpm lcm ddim uni_pc uni_pc_bh2").split()
        schedulers = "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal".split()

        class KSampler:
            SAMPLERS, SCHEDULERS = names, schedulers

            def __init__(self, *_, **__):
                raise Unavailable("it wants comfy.samplers.KSampler, which only ComfyUI has")

        module.KSampler = KSampler
        module.SAMPLER_NAMES, module.SCHEDULER_NAMES, module.KSAMPLER_NAMES = names, schedulers, names

    # ---- nodes, server ----

    def nodes(self, module):
        module.MAX_RESOLUTION = 16384
        module.NODE_CLASS_MAPPINGS = {}
        module.NODE_DISPLAY_NAME_MAPPINGS = {}
        module.EXTENSION_WEB_DIRS = {}
        module.before_node_execution = lambda: None
        module.interrupt_processing = lambda value=True: None

        class SaveImage:
            """Saves pictures as the host's own node does, for packs that build on ComfyUI's."""

            def __init__(self):
                import folder_paths

                self.output_dir, self.type, self.prefix_append = folder_paths.get_output_directory(), "output", ""
                self.compress_level = 4

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
                        "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}

            RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "save_images", True, "image"

            def save_images(self, images, filename_prefix="ComfyUI", prompt=None, extra_pnginfo=None):
                import json

                import folder_paths
                import numpy
                from PIL import Image
                from PIL.PngImagePlugin import PngInfo

                prefix = filename_prefix + self.prefix_append
                size = (int(images.shape[2]), int(images.shape[1]))
                folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, self.output_dir, *size)
                saved = []
                for number, image in enumerate(images):
                    array = numpy.clip(255.0 * numpy.asarray(image.cpu() if hasattr(image, "cpu") else image), 0, 255)
                    about = PngInfo()
                    for key, value in dict(extra_pnginfo or {}, **({"prompt": prompt} if prompt is not None else {})).items():
                        about.add_text(key, json.dumps(value))
                    file = "%s_%05d_.png" % (name.replace("%batch_num%", str(number)), counter + number)
                    picture = Image.fromarray(array.astype(numpy.uint8))
                    picture.save(os.path.join(folder, file), pnginfo=about, compress_level=self.compress_level)
                    saved.append({"filename": file, "subfolder": subfolder, "type": self.type})
                return {"ui": {"images": saved}}

        class PreviewImage(SaveImage):
            def __init__(self):
                import folder_paths

                super().__init__()
                self.output_dir, self.type, self.prefix_append = folder_paths.get_temp_directory(), "temp", "_temp"
                self.compress_level = 1

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"images": ("IMAGE",)}, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}

        class EmptyLatentImage:
            @classmethod
            def INPUT_TYPES(cls):
                size = ("INT", {"default": 512, "min": 16, "max": module.MAX_RESOLUTION, "step": 8})
                return {"required": {"width": size, "height": size, "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096})}}

            RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "generate", "latent"

            def generate(self, width, height, batch_size=1):
                import torch

                return ({"samples": torch.zeros([batch_size, 4, height // 8, width // 8])},)

        class ImageScale:
            upscale_methods = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
            crop_methods = ["disabled", "center"]

            @classmethod
            def INPUT_TYPES(cls):
                size = ("INT", {"default": 512, "min": 0, "max": module.MAX_RESOLUTION})
                return {"required": {"image": ("IMAGE",), "upscale_method": (cls.upscale_methods,), "width": size, "height": size,
                                     "crop": (cls.crop_methods,)}}

            RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "upscale", "image/upscaling"

            def upscale(self, image, upscale_method, width, height, crop):
                import comfy.utils

                if not width and not height:
                    return (image,)
                high, wide = image.shape[1], image.shape[2]
                width, height = width or max(1, round(wide * height / high)), height or max(1, round(high * width / wide))
                return (comfy.utils.common_upscale(image.movedim(-1, 1), width, height, upscale_method, crop).movedim(1, -1),)

        module.SaveImage, module.PreviewImage = SaveImage, PreviewImage
        module.EmptyLatentImage, module.ImageScale = EmptyLatentImage, ImageScale

    @staticmethod
    def server(module):
        def decorator(*_, **__):
            return lambda function: function

        class Routes:
            def __getattr__(self, name):
                return decorator

        class Anything:
            """What is set up for a server that is not here: taken, and nothing comes of it."""

            def __getattr__(self, name):
                return self

            def __call__(self, *_, **__):
                return self

            def __iter__(self):
                return iter(())

            def __bool__(self):
                return False

        class PromptServer:
            instance = None

            def __init__(self):
                self.routes, self.app = Routes(), Anything()
                self.client_id, self.last_node_id, self.last_prompt_id = None, None, None
                self.sockets, self.supports, self.user_manager, self.prompt_queue = {}, [], Anything(), Anything()
                self.web_root, self.port, self.address, self.number = "", 8188, "127.0.0.1", 0

            def send_sync(self, event, data=None, sid=None):
                pass  # there is no page of this pack's that would listen

            def send_progress_text(self, text, node_id=None, sid=None):
                pass

            def add_on_prompt_handler(self, handler):
                pass

            def queue_updated(self):
                pass

        # Packs ask where ComfyUI lies by the file of this class.
        import folder_paths

        module.__file__ = os.path.join(folder_paths.base_path, "server.py")
        PromptServer.__module__ = "server"
        PromptServer.instance = PromptServer()
        module.PromptServer = PromptServer

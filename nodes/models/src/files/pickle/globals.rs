//! Which globals a checkpoint may name, and what each of them means here.
//!
//! A strict list: what is not on it is refused by its name. What is on it is never looked up in any
//! interpreter, for there is none: a global here is a word that stands for one of the [`Role`]s, and
//! the only things that come into being are containers and descriptions of tensors. Training
//! programs leave their settings in the file beside the weights (an `argparse.Namespace`, an
//! omegaconf tree, a callback's class); those are [`Role::Ignored`]: everything that is given to
//! them vanishes, and nobody can ask for it.

use safetensors::tensor::Dtype;

/// What a global stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `OrderedDict()`, `dict()`, `defaultdict(int)`.
    Mapping,
    /// `set([…])`, `torch.Size((…))`: what it is given, as a list.
    Sequence,
    /// `_rebuild_tensor(storage, offset, size, stride)` and `_v2` with more behind it.
    RebuildTensor,
    /// `_rebuild_tensor_v3(storage, offset, size, stride, _, _, dtype)`.
    RebuildTensorV3,
    /// `_rebuild_parameter(tensor, …)`.
    RebuildParameter,
    /// `_rebuild_from_type_v2(function, type, arguments, state)`.
    RebuildFromType,
    /// A storage's class; the type of its elements.
    Storage(Dtype),
    /// `torch.float32` …
    Dtype(Dtype),
    /// `torch.nn.ParameterDict`, whose state holds a mapping of parameters.
    ParameterDict,
    /// `_codecs.encode(text, "latin1")`: how protocol 2 writes bytes.
    Encode,
    /// `copyreg._reconstructor(class, base, state)`.
    Reconstructor,
    /// Data that nobody asks for.
    Ignored,
}

/// Programs whose settings lie in checkpoints.
const IGNORED_PACKAGES: [&str; 8] = [
    "fairseq",
    "ldm",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "pytorch_lightning",
    "torchscale",
    "unilm",
];

/// Classes of the standard library, numpy and torch that describe settings.
const IGNORED: [(&str, &[&str]); 13] = [
    ("argparse", &["Namespace"]),
    ("collections", &["Counter", "deque"]),
    ("datetime", &["date", "datetime", "time", "timedelta", "timezone"]),
    ("numpy", &["bool_", "dtype", "float32", "float64", "int32", "int64", "ndarray"]),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
    ("pathlib", &["Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"]),
    ("torch", &["Generator", "Tensor", "device", "dtype"]),
    ("torch._tensor", &["Tensor"]),
    ("torch.nn.parameter", &["Parameter"]),
    ("torch.serialization", &["_get_layout"]),
    ("typing", &["Any", "Dict", "List", "Optional", "Tuple", "Union"]),
    ("uuid", &["UUID"]),
];

/// Python's own types: `builtins`, or `__builtin__` in protocols below 3.
const BUILTIN_TYPES: [&str; 10] =
    ["bool", "bytearray", "bytes", "complex", "float", "int", "long", "object", "str", "unicode"];

/// The meaning of `module.name`; `None` where it is not allowed.
pub(super) fn role(module: &str, name: &str) -> Option<Role> {
    let role = match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Role::Mapping,
        ("builtins" | "__builtin__", "dict") => Role::Mapping,
        ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => Role::Sequence,
        ("builtins" | "__builtin__", name) if BUILTIN_TYPES.contains(&name) => Role::Ignored,
        ("torch", "Size") => Role::Sequence,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Role::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Role::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Role::RebuildParameter
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Role::RebuildFromType,
        ("torch.nn.modules.container", "ParameterDict") => Role::ParameterDict,
        ("torch.storage", "UntypedStorage") => Role::Storage(Dtype::U8),
        ("torch" | "torch.cuda" | "torch.storage", name) if storage(name).is_some() => {
            Role::Storage(storage(name)?)
        }
        ("torch", name) if dtype(name).is_some() => Role::Dtype(dtype(name)?),
        ("_codecs", "encode") => Role::Encode,
        ("copyreg" | "copy_reg", "_reconstructor") => Role::Reconstructor,
        (module, name) => {
            let listed = IGNORED.iter().any(|(m, names)| *m == module && names.contains(&name));
            let package = module.split('.').next().unwrap_or_default();
            if !listed && !IGNORED_PACKAGES.contains(&package) {
                return None;
            }
            Role::Ignored
        }
    };
    Some(role)
}

fn storage(name: &str) -> Option<Dtype> {
    Some(match name.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        "Untyped" => Dtype::U8,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" | "double" => Dtype::F64,
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_act_is_not_allowed() {
        let hostile = [
            ("os", "system"),
            ("posix", "system"),
            ("nt", "system"),
            ("subprocess", "Popen"),
            ("builtins", "eval"),
            ("builtins", "exec"),
            ("builtins", "getattr"),
            ("builtins", "__import__"),
            ("__builtin__", "apply"),
            ("runpy", "_run_code"),
            ("webbrowser", "open"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("torch._utils", "_import_dotted_name"),
            ("fairseqx.evil", "run"),
            ("numpy.testing._private.utils", "runstring"),
            ("pathlib", "os.system"),
            ("functools", "partial"),
            ("operator", "attrgetter"),
        ];
        for (module, name) in hostile {
            assert_eq!(role(module, name), None, "{module}.{name}");
        }
    }

    #[test]
    fn what_checkpoints_hold_is_known() {
        assert_eq!(role("collections", "OrderedDict"), Some(Role::Mapping));
        assert_eq!(role("torch", "HalfStorage"), Some(Role::Storage(Dtype::F16)));
        assert_eq!(role("torch.cuda", "FloatStorage"), Some(Role::Storage(Dtype::F32)));
        assert_eq!(role("torch", "bfloat16"), Some(Role::Dtype(Dtype::BF16)));
        let callback = "pytorch_lightning.callbacks.model_checkpoint";
        assert_eq!(role(callback, "ModelCheckpoint"), Some(Role::Ignored));
        assert_eq!(role("omegaconf", "DictConfig"), Some(Role::Ignored));
        assert_eq!(role("__builtin__", "long"), Some(Role::Ignored));
    }
}

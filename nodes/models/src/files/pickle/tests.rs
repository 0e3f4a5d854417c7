//! Files of real torch, and files of people who mean harm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).expect("a fixture of the repository")
}

fn refusal(bytes: &[u8]) -> String {
    tensors_of(bytes).expect_err("it is refused").to_string()
}

// ---- Files of torch --------------------------------------------------------------------------

/// What torch saved comes back bit by bit: every type, views, transposed views, parameters; the
/// settings beside them are not in the way.
#[test]
fn what_torch_wrote_is_read_as_it_is() -> Result<()> {
    let expected = bytes_of("expected.safetensors");
    let expected = SafeTensors::deserialize(&expected).expect("a safetensors file");
    let mut names: Vec<&str> = expected.names();
    names.sort();
    for file in ["zip.pt", "protocol4.pt", "legacy.pt"] {
        let file = TorchFile::open(&fixture(file))?;
        assert_eq!(file.names().collect::<Vec<_>>(), names, "{}", file.path().display());
        for name in &names {
            let wanted = expected.tensor(name).expect("it is listed");
            let info = file.info(name).expect("it is listed");
            assert_eq!((info.dtype, &*info.shape), (wanted.dtype(), wanted.shape()), "{name}");
            assert_eq!(file.data(name).as_deref(), Some(wanted.data()), "{name}");
        }
        assert!(!file.tensors["model.transposed"].is_contiguous());
        assert!(file.tensors["model.view"].is_contiguous());
    }
    Ok(())
}

#[test]
fn a_program_is_named_as_one() {
    assert_eq!(refusal(&bytes_of("script.pt")), PickleError::TorchScript.to_string());
}

#[test]
fn every_truncation_is_an_error() {
    for name in ["zip.pt", "legacy.pt"] {
        let bytes = bytes_of(name);
        for length in 0..bytes.len() {
            assert!(tensors_of(&bytes[..length]).is_err(), "{length} bytes of {name}");
        }
    }
    let whole = bytes_of("zip.pt");
    assert!(refusal(&whole[..whole.len() - 1]).contains("truncated"));
    let whole = bytes_of("legacy.pt");
    assert!(refusal(&whole[..whole.len() - 1]).contains("truncated"));
}

#[test]
fn other_files_are_named_for_what_they_look_like() {
    assert!(refusal(b"").contains("it is empty"));
    assert!(refusal(b"<!DOCTYPE html>").contains("a web page"));
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS"));
    assert!(refusal(&bytes_of("expected.safetensors")).contains("safetensors"));
    assert!(refusal(b"\x80\x02}q\x00.").contains("a pickle, but not one of torch.save"));
}

// ---- Assembling files ------------------------------------------------------------------------

/// A stored zip archive.
fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in members {
        let local = bytes.len() as u32;
        let (length, name_length) = (content.len() as u32, name.len() as u16);
        // Version, flags, method, time, date, checksum (0: torch may leave it out).
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend([length, length].iter().flat_map(|n| n.to_le_bytes()));
        common.extend([name_length, 0].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(*content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (bytes.len() as u32, members.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([directory.len() as u32, start].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([0, 0]);
    bytes
}

/// A checkpoint with this pickle and one storage `0` of 16 bytes.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 16])])
}

/// The opcodes of a text.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'X'];
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn int(value: i64) -> Vec<u8> {
    let mut bytes = vec![0x8a, 8];
    bytes.extend(value.to_le_bytes());
    bytes
}

fn ints(values: &[i64]) -> Vec<u8> {
    let mut bytes = vec![b'('];
    bytes.extend(values.iter().flat_map(|value| int(*value)));
    bytes.push(b't');
    bytes
}

/// A storage of `elements` floats under a key.
fn storage(key: &str, elements: i64) -> Vec<u8> {
    let mut bytes = vec![b'('];
    bytes.extend(text("storage"));
    bytes.extend(global("torch", "FloatStorage"));
    bytes.extend(text(key));
    bytes.extend(text("cpu"));
    bytes.extend(int(elements));
    bytes.extend(b"tQ");
    bytes
}

fn tensor(storage: &[u8], offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let mut bytes = global("torch._utils", "_rebuild_tensor_v2");
    bytes.push(b'(');
    bytes.extend(storage);
    bytes.extend(int(offset));
    bytes.extend(ints(shape));
    bytes.extend(ints(strides));
    bytes.push(0x89);
    bytes.extend(global("collections", "OrderedDict"));
    bytes.extend(b")RtR");
    bytes
}

/// `{"w": value}` as a whole pickle.
fn one(value: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}".to_vec();
    bytes.extend(text("w"));
    bytes.extend(value);
    bytes.extend(b"s.");
    bytes
}

#[test]
fn an_assembled_checkpoint_is_read() -> Result<(), PickleError> {
    let pickle = one(&tensor(&storage("0", 4), 1, &[1, 2], &[9, 1]));
    let found = tensors_of(&checkpoint(&pickle))?;
    let info = &found["w"];
    assert_eq!((info.dtype, &*info.shape, info.bytes.len()), (Dtype::F32, &[1, 2][..], 8));
    assert!(info.is_contiguous());
    Ok(())
}

// ---- Programs --------------------------------------------------------------------------------

#[test]
fn a_global_that_acts_is_refused_by_name_and_place() {
    let hostile = [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "check_output"),
        ("torch.hub", "load"),
    ];
    for (module, name) in hostile {
        // `system("…")`, as a value in a dictionary of weights.
        let mut call = global(module, name);
        call.extend(text("touch owned"));
        call.extend(b"\x85R");
        let file = checkpoint(&one(&call));
        let at = file.windows(2).position(|pair| pair == [b'c', module.as_bytes()[0]]);
        let said = refusal(&file);
        assert!(said.contains(&format!("`{module}.{name}`")), "{said}");
        assert!(said.contains(&format!("(byte {})", at.expect("it is in there"))), "{said}");

        // By STACK_GLOBAL, in the middle of an argument namespace, in the old format.
        let mut call = global("argparse", "Namespace");
        call.extend(b")\x81}");
        call.extend(text("x"));
        call.extend(text(module));
        call.extend(text(name));
        call.extend(b"\x93)Rsb");
        let said = refusal(&legacy_file(&one(&call), "[]"));
        assert!(said.contains(&format!("`{module}.{name}`")), "{said}");
    }
}

/// A file of the old format with `object` and the opcodes of its storage keys; no storages.
fn legacy_file(object: &[u8], keys: &str) -> Vec<u8> {
    let mut bytes =
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    bytes.extend(object);
    bytes.extend(b"\x80\x02");
    bytes.extend(keys.replace("[]", "]").as_bytes());
    bytes.push(b'.');
    bytes
}

#[test]
fn a_reduce_of_a_reduce_is_refused() {
    // Calling what a call returned: ((OrderedDict())()).
    let mut nested = global("collections", "OrderedDict");
    nested.extend(b")R)R");
    let said = refusal(&checkpoint(&one(&nested)));
    assert!(
        said.contains("REDUCE") && said.contains("calls something that is no global"),
        "{said}"
    );
    // A reconstruction that is to call something else.
    let mut nested = global("torch._tensor", "_rebuild_from_type_v2");
    nested.push(b'(');
    nested.extend(global("torch._tensor", "_rebuild_from_type_v2"));
    nested.extend(global("torch", "Tensor"));
    nested.extend(b")Nt");
    nested.push(b'R');
    let said = refusal(&checkpoint(&one(&nested)));
    assert!(said.contains("no tensor"), "{said}");
    // A class of settings takes its arguments, whatever they are, and is nothing afterwards.
    let mut nested = global("omegaconf.dictconfig", "DictConfig");
    nested.extend(b")R)R");
    let said = refusal(&checkpoint(&one(&nested)));
    assert!(said.contains("calls something that is no global"), "{said}");
}

#[test]
fn opcodes_that_torch_does_not_write_are_named() {
    for (code, name) in [
        (&b"(ios\nsystem\n"[..], "INST"),
        (b"(cargparse\nNamespace\no", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (b"\x84\x01\0\0\0", "EXT4"),
        (b"P1\n", "PERSID"),
        (b"\x97", "NEXT_BUFFER"),
        (b"\xff", "0xff"),
    ] {
        let said = refusal(&checkpoint(&one(code)));
        assert!(said.contains(&format!("opcode {name} at byte")), "{said}");
    }
}

#[test]
fn programs_that_make_no_sense_are_errors() {
    for (code, why) in [
        (&b"h\x05"[..], "never kept"),
        (b"0000", "stack empty"),
        (b"u", "no mark"),
        (b"(Nu", "key without a value"),
        (b"Na", "no list"),
        (b"NQ", "torch.save"),
        (b"\x80\x09", "protocol 9"),
        (b"X\xff\xff\xff\xff", "truncated"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "truncated"),
        (b"Nb", "state"),
    ] {
        let said = refusal(&checkpoint(&one(code)));
        assert!(said.contains(why), "{said}");
    }
}

// ---- Bombs -----------------------------------------------------------------------------------

#[test]
fn a_memo_bomb_is_refused() {
    // Lists of the list before, twice: 2^60 leaves in 400 bytes, with a tensor in the innermost.
    let mut bomb = b"]".to_vec();
    bomb.extend(tensor(&storage("0", 4), 0, &[4], &[1]));
    bomb.extend(b"aq\x00");
    for level in 0..60u8 {
        bomb.extend([b']', b'h', level, b'a', b'h', level, b'a', b'q', level + 1]);
        // The list before is below on the stack; take the pair of them as a tuple and keep on.
        bomb.extend(b"\x86");
    }
    let said = refusal(&checkpoint(&one(&bomb)));
    assert!(said.contains("bytes") && said.contains("hostile"), "{said}");
    // The same with dictionaries of two keys, ten of them wide.
    let mut bomb = b"}q\x00".to_vec();
    for level in 0..40u8 {
        bomb.extend(b"}(");
        for key in 0..10u8 {
            bomb.extend([b'K', key, b'h', level]);
        }
        bomb.extend([b'u', b'q', level + 1]);
    }
    let said = refusal(&checkpoint(&one(&bomb)));
    assert!(said.contains("hostile"), "{said}");
}

#[test]
fn a_container_within_itself_and_deep_nesting_are_refused() {
    let said = refusal(&checkpoint(&one(b"]q\x00h\x00a")));
    assert!(said.contains("deeper than 64"), "{said}");
    let deep: Vec<u8> = [vec![b']'; 100_000], vec![b'a'; 99_999]].concat();
    let said = refusal(&checkpoint(&one(&deep)));
    assert!(said.contains("deeper than 64"), "{said}");
}

#[test]
fn a_pickle_cannot_take_more_memory_than_it_may() {
    // Ten million empty dictionaries of one byte each, thrown away again: each has its place.
    let said = refusal(&checkpoint(&one(&b"}0".repeat(10_000_000))));
    assert!(said.contains("would unfold to more than"), "{said}");
    // A memo of entries far apart.
    let far: Vec<u8> = (0..2_000_000u32)
        .flat_map(|n| [[b'r'].to_vec(), (n * 2003).to_le_bytes().to_vec()].concat())
        .collect();
    let said = refusal(&checkpoint(&one(&[b"N".to_vec(), far].concat())));
    assert!(said.contains("hostile"), "{said}");
    // A stack of numbers that nobody takes.
    let said = refusal(&checkpoint(&one(&b"N".repeat(2_000_000))));
    assert!(said.contains("hostile"), "{said}");
}

// ---- Tensors ---------------------------------------------------------------------------------

#[test]
fn tensors_that_do_not_fit_their_storage_are_refused_by_name() {
    const HUGE: i64 = i64::MAX;
    for (tensor, why) in [
        (tensor(&storage("0", 4), 0, &[5], &[1]), "its storage `0` has 16"),
        (tensor(&storage("0", 4), 1, &[4], &[1]), "leaves its storage"),
        (tensor(&storage("0", 4), 0, &[2, 2], &[3, 1]), "leaves its storage"),
        (tensor(&storage("0", 4), 0, &[2, 2], &[HUGE, 1]), "leaves its storage"),
        (tensor(&storage("0", 4), HUGE, &[1], &[1]), "leaves its storage"),
        (tensor(&storage("0", 4), 0, &[HUGE, HUGE], &[1, 1]), "impossibly large"),
        // A broadcast of one number to many would be larger than the file.
        (tensor(&storage("0", 4), 0, &[1 << 40], &[0]), "its storage `0` has 16"),
        (tensor(&storage("0", 5), 0, &[4], &[1]), "said to have 5 elements"),
        (tensor(&storage("0", HUGE), 0, &[4], &[1]), "said to have"),
        (tensor(&storage("1", 4), 0, &[4], &[1]), "`1`, which is not in the file"),
        (tensor(&storage("../../etc/passwd", 4), 0, &[4], &[1]), "not in the file"),
    ] {
        let said = refusal(&checkpoint(&one(&tensor)));
        assert!(said.contains("tensor `w`") && said.contains(why), "{said}");
    }
    for (tensor, why) in [
        (tensor(&storage("0", 4), -1, &[1], &[1]), "before its storage"),
        (tensor(&storage("0", 4), 0, &[-1], &[1]), "no whole numbers"),
        (tensor(&storage("0", 4), 0, &[2], &[-1]), "no whole numbers"),
        (tensor(&storage("0", 4), 0, &[2, 1], &[1]), "2 dimensions with 1 strides"),
        (tensor(&storage("0", 4), 0, &[1; 65], &[1; 65]), "65 dimensions"),
        (tensor(b"N", 0, &[1], &[1]), "no storage"),
        (tensor(&storage("0", -4), 0, &[1], &[1]), "no whole number"),
    ] {
        let said = refusal(&checkpoint(&one(&tensor)));
        assert!(said.contains("opcode") && said.contains(why), "{said}");
    }
}

#[test]
fn a_name_that_two_tensors_have_is_refused() {
    let tensor = tensor(&storage("0", 4), 0, &[4], &[1]);
    let mut pickle = b"\x80\x02}(".to_vec();
    pickle.extend(text("a.b"));
    pickle.extend(&tensor);
    pickle.extend(text("a"));
    pickle.push(b'}');
    pickle.extend(text("b"));
    pickle.extend(&tensor);
    pickle.extend(b"su.");
    let said = refusal(&checkpoint(&pickle));
    assert!(said.contains("`a.b` is in it twice"), "{said}");
}

#[test]
fn the_old_format_counts_its_storages() {
    let pickle = one(&tensor(&storage("k", 4), 0, &[4], &[1]));
    let mut file = legacy_file(&pickle, "](X\u{1}\0\0\0ke");
    let head = file.len();
    file.extend(4u64.to_le_bytes());
    file.extend([1; 16]);
    let found = tensors_of(&file).expect("a whole file");
    assert_eq!(found["w"].bytes, head + 8..head + 24);
    for count in [5, u64::MAX, u64::MAX / 4, 1 << 62] {
        let mut lying = file.clone();
        lying[head..head + 8].copy_from_slice(&count.to_le_bytes());
        assert!(refusal(&lying).contains("truncated"), "{count}");
    }
    file.push(0);
    assert!(refusal(&file).contains("1 bytes follow"));
}

#[test]
fn big_endian_files_are_refused() {
    let pickle = one(&tensor(&storage("0", 4), 0, &[4], &[1]));
    let members = [("a/data.pkl", &*pickle), ("a/byteorder", b"big"), ("a/data/0", &[0; 16])];
    assert!(refusal(&zip(&members)).contains("big-endian"));
    let legacy = bytes_of("legacy.pt");
    let key = b"little_endian";
    let at = legacy.windows(key.len()).position(|window| window == key).expect("torch writes it");
    let mut swapped = legacy.clone();
    let value = legacy[at..].iter().position(|byte| *byte == 0x88).expect("true") + at;
    swapped[value] = 0x89;
    assert!(refusal(&swapped).contains("big-endian"));
}

// ---- Archives --------------------------------------------------------------------------------

/// Where the first directory entry, the last record and the like begin.
fn find(bytes: &[u8], signature: &[u8]) -> usize {
    let mut places = bytes.windows(signature.len());
    places.position(|window| window == signature).expect("the signature is there")
}

fn patched(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

#[test]
fn compressed_and_encrypted_members_are_refused() {
    let file = checkpoint(&one(b"N"));
    let entry = find(&file, b"PK\x01\x02");
    assert!(refusal(&patched(&file, entry + 10, &[8])).contains("compressed (method 8)"));
    assert!(refusal(&patched(&file, entry + 8, &[1])).contains("encrypted"));
}

#[test]
fn lengths_and_places_that_lie_are_refused() {
    let file = checkpoint(&one(b"N"));
    let (entry, end) = (find(&file, b"PK\x01\x02"), find(&file, b"PK\x05\x06"));
    for (at, with, why) in [
        (entry + 20, &[0xff, 0xff, 0xff, 0x7f][..], "packed and"),
        (entry + 20, &[0xf0, 0xff, 0xff, 0x7f, 0xf0, 0xff, 0xff, 0x7f], "not inside"),
        (entry + 42, &[0xf0, 0xff, 0xff, 0x7f], "not inside"),
        (entry + 42, &[1], "no header"),
        (entry + 42, &[0xff; 4], "zip64 field"),
        (entry + 28, &[0xff, 0x00], "ends in the middle"),
        (entry + 46, b"b", "called otherwise"),
        (end + 8, &[9, 0, 9, 0], "claims 9 members"),
        (end + 10, &[9], "several files"),
        (end + 12, &[0xff; 4], "zip64 record is missing"),
        (end + 12, &[0xff, 0xff, 0xff, 0x7f], "not inside"),
        (end + 16, &[0xff, 0xff, 0xff, 0x7f], "not inside"),
        (end + 8, &[1, 0, 1, 0], "longer than its entries"),
        (end + 20, &[1], "truncated"),
    ] {
        let said = refusal(&patched(&file, at, with));
        assert!(said.contains(why), "{why:?} is not in {said:?}");
    }
}

#[test]
fn zip64_records_that_lie_are_refused() {
    // torch writes one in every file.
    let file = bytes_of("zip.pt");
    let (record, locator) = (find(&file, b"PK\x06\x06"), find(&file, b"PK\x06\x07"));
    let huge = u64::MAX.to_le_bytes();
    for (at, with, why) in [
        (record + 24, &huge[..], "contradicts"),
        (record + 32, &huge, "contradicts"),
        (record + 40, &huge, "contradicts"),
        (record + 48, &huge, "contradicts"),
        (locator + 8, &huge, "points at no zip64 record"),
        (locator + 8, &[1, 0, 0, 0, 0, 0, 0, 0], "points at no zip64 record"),
    ] {
        let said = refusal(&patched(&file, at, with));
        assert!(said.contains(why), "{why:?} is not in {said:?}");
    }
    // The short record defers to the long one, which then lies alone.
    let end = find(&file, b"PK\x05\x06");
    let deferred = patched(&file, end + 8, &[0xff; 12]);
    tensors_of(&deferred).expect("the long record is true");
    for field in [32, 40, 48] {
        let lying = patched(&deferred, record + field, &huge);
        let lying = if field == 32 { patched(&lying, record + 24, &huge) } else { lying };
        let said = refusal(&lying);
        assert!(said.contains("not inside") || said.contains("room for"), "{said}");
    }
}

#[test]
fn members_that_overlap_or_repeat_are_refused() {
    let pickle = one(b"N");
    let twice = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 4]), ("a/data/0", &[1; 4])]);
    assert!(refusal(&twice).contains("two members `a/data/0`"));
    let two = zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]);
    assert!(refusal(&two).contains("two members data.pkl"));
    assert!(refusal(&zip(&[("a/b", b"")])).contains("without a member data.pkl"));
    // A storage that reaches over the one behind it.
    let file = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 4]), ("a/data/1", &[1; 4])]);
    let entry = find(&file, b"PK\x01\x02");
    let second = entry + 46 + "a/data.pkl".len();
    assert!(refusal(&patched(&file, second + 20, &[40, 0, 0, 0, 40])).contains("overlap"));
}

// ---- Anything --------------------------------------------------------------------------------

/// What is accepted lies within the file.
fn check(bytes: &[u8]) {
    if let Ok(tensors) = tensors_of(bytes) {
        for (name, info) in tensors {
            assert!(info.bytes.end <= bytes.len() && info.byte_length() <= bytes.len(), "{name}");
            if !info.is_contiguous() {
                assert_eq!(gather(&bytes[info.bytes.clone()], &info).len(), info.byte_length());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes);
        check(&checkpoint(&bytes));
        check(&checkpoint(&one(&bytes)));
        check(&[b"PK\x03\x04", &*bytes].concat());
        check(&legacy_file(&bytes, "[]"));
    }

    #[test]
    fn damaged_files_are_errors_or_other_tensors(
        legacy in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = bytes_of(if legacy { "legacy.pt" } else { "zip.pt" });
        for (at, with) in changes {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        check(&bytes);
    }

    #[test]
    fn pieces_moved_about_are_errors_or_other_tensors(
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        length in 1usize..64,
    ) {
        let mut bytes = bytes_of("zip.pt");
        let (from, to) = (from.index(bytes.len() - length), to.index(bytes.len() - length));
        bytes.copy_within(from..from + length, to);
        check(&bytes);
    }
}

#[test]
fn opened_files_name_themselves_in_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("evil.ckpt");
    std::fs::write(&path, checkpoint(&one(&global("os", "system")))).expect("written");
    let said = TorchFile::open(&path).expect_err("it is refused").to_string();
    assert!(said.contains("evil.ckpt") && said.contains("os.system"), "{said}");
    assert!(TorchFile::begins(&std::fs::read(&path).expect("read")));
    let none: BTreeMap<String, TensorInfo> = BTreeMap::new();
    assert_eq!(tensors_of(&checkpoint(b"\x80\x02}.")), Ok(none));
}

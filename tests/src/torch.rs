//! Torch files, as `torch.save` writes them: a zip archive with a pickle, tensors in stored members.
//! What a test leaves at zero takes no room on the disk, so that checkpoints of the real size can be
//! made.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// A tensor to save.
#[derive(Clone, Debug)]
pub struct Saved {
    pub name: String,
    /// "Float", "Half" …: the beginning of its storage's class.
    pub storage: &'static str,
    pub shape: Vec<usize>,
    /// Its bytes; `None` for zeros.
    pub data: Option<Vec<u8>>,
}

impl Saved {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (name, shape) = (name.to_owned(), shape.to_vec());
        Self { name, storage: "Float", shape, data: Some(data) }
    }

    pub fn zeros(name: &str, storage: &'static str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), storage, shape: shape.to_vec(), data: None }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        let size = match self.storage {
            "Double" | "Long" => 8,
            "Float" | "Int" => 4,
            "Half" | "BFloat16" => 2,
            _ => 1,
        };
        (self.elements() * size) as u64
    }
}

/// Saves `{"args": Namespace(arch="kosmosg"), "model": OrderedDict(…)}`, as fairseq does.
pub fn save_fairseq(path: &Path, tensors: &[Saved]) {
    let mut pickle = b"\x80\x02}(".to_vec();
    pickle.extend(text("args"));
    pickle.extend(b"cargparse\nNamespace\n)\x81}");
    pickle.extend(text("arch"));
    pickle.extend(text("kosmosg"));
    pickle.extend(b"sb");
    pickle.extend(text("model"));
    pickle.extend(dictionary(tensors));
    pickle.extend(b"u.");
    save(path, &pickle, tensors);
}

/// Saves the tensors as a dictionary, as a state_dict is saved.
pub fn save_state_dict(path: &Path, tensors: &[Saved]) {
    let mut pickle = b"\x80\x02".to_vec();
    pickle.extend(dictionary(tensors));
    pickle.push(b'.');
    save(path, &pickle, tensors);
}

/// Saves a pickle of the test's own, and the storages of `tensors` beside it, numbered from 0.
pub fn save(path: &Path, pickle: &[u8], tensors: &[Saved]) {
    let mut zip = Zip::create(path);
    zip.member("archive/data.pkl", pickle.len() as u64, Some(pickle));
    zip.member("archive/byteorder", 6, Some(b"little"));
    for (key, tensor) in tensors.iter().enumerate() {
        zip.member(&format!("archive/data/{key}"), tensor.bytes(), tensor.data.as_deref());
    }
    zip.member("archive/version", 2, Some(b"3\n"));
    zip.finish();
}

/// The opcodes of a text.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'X'];
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn int(value: usize) -> Vec<u8> {
    let mut bytes = vec![0x8a, 8];
    bytes.extend((value as u64).to_le_bytes());
    bytes
}

fn dictionary(tensors: &[Saved]) -> Vec<u8> {
    let mut pickle = b"ccollections\nOrderedDict\n)R(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        pickle.extend(text(&tensor.name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(text("storage"));
        pickle.extend(format!("ctorch\n{}Storage\n", tensor.storage).as_bytes());
        pickle.extend(text(&key.to_string()));
        pickle.extend(text("cpu"));
        pickle.extend(int(tensor.elements()));
        pickle.extend(b"tQK\x00(");
        pickle.extend(tensor.shape.iter().flat_map(|length| int(*length)));
        pickle.extend(b"t(");
        let stride = |i: usize| tensor.shape[i + 1..].iter().product();
        pickle.extend((0..tensor.shape.len()).flat_map(|i| int(stride(i))));
        pickle.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.push(b'u');
    pickle
}

/// A zip archive of stored members with zip64 records, as torch writes it.
struct Zip {
    file: File,
    end: u64,
    directory: Vec<u8>,
    members: u64,
}

impl Zip {
    fn create(path: &Path) -> Self {
        let file = File::create(path).expect("a file can be made");
        Self { file, end: 0, directory: Vec::new(), members: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("the file can be written");
        self.end += bytes.len() as u64;
    }

    fn member(&mut self, name: &str, length: u64, data: Option<&[u8]>) {
        let local = self.end;
        let mut header = b"PK\x03\x04\x2d\0\0\x08\0\0\0\0\0\0\0\0\0\0".to_vec();
        header.extend([0xff; 8]);
        header.extend((name.len() as u16).to_le_bytes());
        header.extend(20u16.to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(b"\x01\0\x10\0");
        header.extend([length, length].iter().flat_map(|n| n.to_le_bytes()));
        self.write(&header);
        match data {
            Some(data) => {
                assert_eq!(data.len() as u64, length, "{name}");
                self.write(data);
            }
            None => {
                self.end += length;
                self.file.seek(SeekFrom::Start(self.end)).expect("the file can be lengthened");
            }
        }
        let entry = b"PK\x01\x02\x2d\0\x2d\0\0\x08\0\0\0\0\0\0\0\0\0\0";
        self.directory.extend(entry);
        self.directory.extend([0xff; 8]);
        self.directory.extend((name.len() as u16).to_le_bytes());
        self.directory.extend(28u16.to_le_bytes());
        self.directory.extend([0; 10]);
        self.directory.extend([0xff; 4]);
        self.directory.extend(name.as_bytes());
        self.directory.extend(b"\x01\0\x18\0");
        self.directory.extend([length, length, local].iter().flat_map(|n| n.to_le_bytes()));
        self.members += 1;
    }

    fn finish(mut self) {
        let (start, record) = (self.end, self.end + self.directory.len() as u64);
        let directory = std::mem::take(&mut self.directory);
        let length = directory.len() as u64;
        self.write(&directory);
        let mut end = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0".to_vec();
        end.extend(
            [self.members, self.members, length, start].iter().flat_map(|n| n.to_le_bytes()),
        );
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend(record.to_le_bytes());
        end.extend(1u32.to_le_bytes());
        end.extend(b"PK\x05\x06\0\0\0\0");
        end.extend([0xff; 12]);
        end.extend([0; 2]);
        self.write(&end);
    }
}

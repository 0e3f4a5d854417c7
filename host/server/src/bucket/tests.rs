use super::*;
use object_store::memory::InMemory;

/// Two processes before one bucket.
fn two() -> (Bucket, Bucket, tempfile::TempDir) {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let root = folder.path().join(name);
        let bucket = Bucket::with(objects.clone(), runtime.unwrap(), root, "a/b", "test").unwrap();
        bucket.prepare().unwrap();
        bucket
    };
    (of("one"), of("two"), folder)
}

#[test]
fn addresses() {
    assert_eq!(parts("s3://bucket"), Ok(("bucket", "")));
    assert_eq!(parts("s3://bucket/"), Ok(("bucket", "")));
    assert_eq!(parts("s3://my-bucket/a/b/"), Ok(("my-bucket", "a/b")));
    for wrong in ["s3://", "s3:///a", "s3://a b", "s3://a/../b", "s3://a/b//c", "gs://a", "/mnt"] {
        assert!(parts(wrong).unwrap_err().contains("s3://BUCKET"), "{wrong}");
    }
}

#[test]
fn only_a_copy_of_ones_own_is_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("input/a.png");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "theirs").unwrap();
    let refused = claim(folder.path()).unwrap_err();
    assert!(refused.contains("--state") && theirs.exists(), "{refused}");
    let root = folder.path().join("copy");
    let held = claim(&root).unwrap();
    assert!(claim(&root).unwrap_err().contains("another kosmograph"));
    drop(held);
    fs::write(root.join("old.png"), "of an earlier process").unwrap();
    claim(&root).unwrap();
}

#[test]
fn answers_are_sentences() {
    let answer = "Server returned 404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code>\
                  <Message>The specified bucket does not exist</Message><RequestId>M</RequestId></Error>";
    let said = "Server returned 404 Not Found: The specified bucket does not exist";
    assert_eq!(without_markup(answer), said);
    assert_eq!(without_markup("a < b: <Message>"), "a < b: <Message>");
}

#[test]
fn what_one_writes_the_other_brings_and_old_copies_go() {
    let (one, two, _folder) = two();
    let (here, there) = (one.root().join("input/s/a.png"), two.root().join("input/s/a.png"));
    assert!(one.write(&here, b"first", Existing::Keep).unwrap());
    assert!(!two.write(&there, b"other", Existing::Keep).unwrap(), "the name is taken");
    assert!(!there.exists(), "a refused file is nowhere");
    two.bring(&there).unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"first");
    let before = fs::metadata(&there).unwrap().modified().unwrap();
    two.bring(&there).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().modified().unwrap(), before, "not fetched again");
    assert!(one.write(&here, b"second", Existing::Replace).unwrap());
    two.bring(&there).unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"second");
    one.remove(&here).unwrap();
    two.bring(&there).unwrap();
    assert!(!there.exists());
    assert!(one.remove(&here).is_err_and(|error| error.kind() == ErrorKind::NotFound));
}

#[test]
fn a_copy_that_was_pruned_is_fetched_again() {
    let (one, _, _folder) = two();
    let path = one.root().join("output/a.png");
    fs::write(&path, "made").unwrap();
    one.bring(&path).unwrap();
    assert!(path.exists(), "what was never sent stays");
    one.send(&path).unwrap();
    fs::remove_file(&path).unwrap();
    one.bring(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"made");
}

#[test]
fn large_files_go_in_parts() {
    let (one, two, _folder) = two();
    let (here, there) = (one.root().join("output/a.bin"), two.root().join("output/a.bin"));
    let bytes: Vec<u8> = (0..PART * 2 + 17).map(|at| ((at * 31) >> 7) as u8).collect();
    fs::write(&here, &bytes).unwrap();
    one.send(&here).unwrap();
    two.bring(&there).unwrap();
    assert!(fs::read(&there).unwrap() == bytes);
}

#[test]
fn folders_are_brought_and_listed() {
    let (one, two, _folder) = two();
    let put = |name: &str| one.write(&one.root().join(name), b"x", Existing::Keep).unwrap();
    assert!(put("user/default/workflows/a.json") && put("user/default/workflows/b/c.json"));
    assert!(put("input/p.png") && put("input/sub/q.png"));
    let folder = two.root().join("user/default/workflows");
    two.bring_all(&folder).unwrap();
    assert!(folder.join("a.json").is_file() && folder.join("b/c.json").is_file());
    one.rename(
        &one.root().join("user/default/workflows/a.json"),
        &one.root().join("user/default/workflows/d.json"),
    )
    .unwrap();
    two.bring_all(&folder).unwrap();
    assert!(!folder.join("a.json").exists() && folder.join("d.json").is_file());
    assert_eq!(two.names(&two.root().join("input")), ["p.png"]);
}

#[test]
fn nothing_else_is_the_buckets() {
    let (one, _, folder) = two();
    let path = folder.path().join("theirs.png");
    fs::write(&path, "theirs").unwrap();
    one.bring(&path).unwrap();
    assert!(path.exists());
    assert!(one.write(&path, b"x", Existing::Replace).is_err());
    assert!(one.send(&one.root().join("elsewhere/a.png")).is_err());
}

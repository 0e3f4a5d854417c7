//! A library played by functions of this file, well behaved and not.

use super::*;

/// Remembers what it was told; stops the work at `stop_at`.
#[derive(Default)]
struct Recorder {
    lines: Mutex<Vec<(LogLevel, String)>>,
    outputs: Mutex<Vec<Json>>,
    stop_at: Option<u64>,
    panics: bool,
}

impl Call for Recorder {
    fn log(&self, level: LogLevel, message: &str) {
        self.lines.lock().unwrap().push((level, message.to_owned()));
    }

    fn progress(&self, step: u64, steps: u64) -> bool {
        assert!(!self.panics, "as the test asked");
        assert!(step <= steps);
        self.stop_at.is_some_and(|at| step >= at)
    }

    fn property(&self, name: &str) -> Option<String> {
        (name == "device").then(|| "cpu".to_owned())
    }

    fn output(&self, json: Json) {
        self.outputs.lock().unwrap().push(json);
    }
}

fn sentence(result: Result<Vec<Value>, NodeFailure>) -> String {
    match result {
        Err(NodeFailure::Failed { sentence, .. }) => sentence,
        other => panic!("{other:?} is no failure with a sentence"),
    }
}

fn image_output() -> [Expected; 1] {
    [Expected::new("image".to_owned(), "IMAGE".to_owned(), false)]
}

#[test]
fn what_was_written_comes_back_and_what_was_said_arrives() {
    let recorder = Recorder::default();
    let values = invoke(("Node", true), &recorder, 2, &[], |context, outputs| unsafe {
        log(context, abi::LOG_WARN, abi::Str::new("a line"));
        let mut device = abi::Str::EMPTY;
        property(context, abi::Str::new("device"), &mut device);
        let text = new_string(context, device);
        *outputs =
            abi::Value { kind: abi::STRING, reserved: 0, payload: abi::Payload { string: text } };
        assert_eq!(progress(context, 9, 3), 0);
        output(context, abi::Str::new("{\"images\":[]}"));
        let mut weather = abi::Str::new("unchanged");
        property(context, abi::Str::new("weather"), &mut weather);
        assert!(weather.as_bytes().is_empty());
        *outputs.add(1) = abi::Value::integer(5);
        abi::OK
    });
    let values = values.unwrap();
    assert_eq!(values[0].as_str(), Some("cpu"));
    assert_eq!(values[0].references(), Some(1));
    assert_eq!(values[1].as_i64(), Some(5));
    assert_eq!(*recorder.lines.lock().unwrap(), [(LogLevel::Warn, "a line".to_owned())]);
    assert_eq!(recorder.outputs.lock().unwrap().len(), 1);
}

#[test]
fn a_failure_carries_its_sentence_and_input_and_the_last_one_counts() {
    let result = invoke(("Node", true), &Recorder::default(), 0, &[], |context, _| unsafe {
        fail(context, abi::Str::EMPTY, abi::Str::new("first"));
        fail(context, abi::Str::new("steps"), abi::Str::new("too many steps"));
        abi::ERROR
    });
    let wanted =
        NodeFailure::Failed { input: Some("steps".into()), sentence: "too many steps".into() };
    assert_eq!(result.unwrap_err(), wanted);
}

#[test]
fn a_failure_releases_what_was_written() {
    let value = Value::string("kept");
    let result = invoke(("Node", true), &Recorder::default(), 1, &[], |_, outputs| unsafe {
        *outputs = value.clone().into_raw();
        assert_eq!(value.references(), Some(2));
        abi::ERROR
    });
    assert_eq!(value.references(), Some(1));
    let failure = result.unwrap_err();
    assert!(failure.is_broken_rule() && failure.to_string().contains("gave no reason"));
}

#[test]
fn rules_that_are_broken_become_sentences() {
    let run = |expected: &[Expected], status, value: abi::Value| {
        sentence(invoke(("Node", true), &Recorder::default(), 1, expected, |_, outputs| {
            // SAFETY: one output was asked for.
            unsafe { *outputs = value };
            status
        }))
    };
    let none = abi::Value::NONE;
    assert!(run(&[], 7, none).contains("status 7"));
    assert!(run(&[], abi::CANCELLED, none).contains("nobody asked"));
    assert!(run(&image_output(), abi::OK, none).contains("output 0 \"image\" (IMAGE) is nothing"));
    assert!(run(&image_output(), abi::OK, abi::Value::integer(1)).contains("an integer"));
    let unknown = abi::Value { kind: 99, ..none };
    assert!(run(&[], abi::OK, unknown).contains("of kind 99"));
    let null = abi::Value { kind: abi::TENSOR, ..none };
    assert!(run(&image_output(), abi::OK, null).contains("at NULL"));
    let said = invoke(("Node", true), &Recorder::default(), 0, &[], |context, _| unsafe {
        output(context, abi::Str::new("[1]"));
        abi::OK
    });
    assert!(sentence(said).contains("no object"));
}

#[test]
fn cancelling_is_asked_for_once_and_stays() {
    let recorder = Recorder { stop_at: Some(2), ..Recorder::default() };
    let mut steps = 0;
    let result = invoke(("Node", true), &recorder, 0, &[], |context, _| {
        // SAFETY: the context that was lent.
        while unsafe { progress(context, steps, 10) } == 0 {
            steps += 1;
        }
        abi::CANCELLED
    });
    assert_eq!((result.unwrap_err(), steps), (NodeFailure::Cancelled, 2));
}

#[test]
fn a_panic_of_the_host_does_not_reach_the_library() {
    let recorder = Recorder { panics: true, ..Recorder::default() };
    let result = invoke(("Node", true), &recorder, 0, &[], |context, _| {
        // SAFETY: the context that was lent.
        assert_eq!(unsafe { progress(context, 0, 1) }, 1, "the work is to stop");
        abi::CANCELLED
    });
    assert!(sentence(result).contains("mistake in kosmograph"));
}

#[test]
fn malformed_parts_are_refused_with_a_line() {
    let recorder = Recorder::default();
    let result = invoke(("Node", true), &recorder, 0, &[], |context, _| unsafe {
        let wrong = abi::Value { kind: 77, ..abi::Value::NONE };
        assert!(new_list(context, &wrong, 1).is_null());
        assert!(new_list(context, std::ptr::null(), 3).is_null());
        let keys = [abi::Str::new("a"), abi::Str::new("a")];
        let values = [abi::Value::integer(1), abi::Value::integer(2)];
        assert!(new_map(context, keys.as_ptr(), values.as_ptr(), 2).is_null());
        let not_utf8 = [0xffu8];
        let text = abi::Str { ptr: not_utf8.as_ptr().cast(), len: 1 };
        assert!(new_string(context, text).is_null());
        let shape = [i64::MAX, i64::MAX];
        assert!(new_tensor(context, abi::DLDataType::F32, 2, shape.as_ptr()).is_null());
        assert!(new_tensor(context, abi::DLDataType::F32, -1, shape.as_ptr()).is_null());
        assert!(new_tensor(std::ptr::null(), abi::DLDataType::F32, 0, shape.as_ptr()).is_null());
        abi::OK
    });
    assert!(result.is_ok());
    assert_eq!(recorder.lines.lock().unwrap().len(), 6);
}

#[test]
fn a_new_tensor_is_zeroed_and_a_list_keeps_what_is_put_in() {
    let values = invoke(("Node", true), &Recorder::default(), 1, &[], |context, outputs| unsafe {
        let tensor = new_tensor(context, abi::DLDataType::F32, 2, [2i64, 3].as_ptr());
        let item = abi::Value { kind: abi::TENSOR, reserved: 0, payload: abi::Payload { tensor } };
        let list = new_list(context, &item, 1);
        ((*tensor).base.release)(tensor.cast());
        *outputs = abi::Value { kind: abi::LIST, reserved: 0, payload: abi::Payload { list } };
        abi::OK
    });
    let values = values.unwrap();
    let tensor = &values[0].items()[0];
    assert_eq!(tensor.references(), Some(1));
    assert_eq!(tensor.as_tensor().unwrap().to_f32(), Some(vec![0.0; 6]));
    assert_eq!(tensor.tensor_shape(), Some(&[2i64, 3][..]));
}

#[test]
fn an_object_without_interfaces_says_so() {
    let object = Value::object_without_interfaces("MODEL");
    assert!(!offers(&object, "denoiser/1"));
    let result = call_interface(&object, "denoiser/1", &Recorder::default(), &input([]));
    let result = result.map(|_| vec![]);
    assert_eq!(sentence(result), "\"denoiser/1\" of a MODEL is not offered");
    let result = call_interface(&Value::NONE, "denoiser/1", &Recorder::default(), &input([]));
    assert!(sentence(result.map(|_| vec![])).contains("nothing"));
}

//! Whatever the arguments, the keys of a command are among them, and asking never panics.
//!
//! Input: words separated by newlines; the first names the command.

#![no_main]

use keyheat_resp::command::{lookup, Access};
use keyheat_resp::slot::{hash_tag, slot, SLOTS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let words: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let Some(mut command) = lookup(words[0]) else {
        return;
    };
    assert!(command.name.as_bytes().eq_ignore_ascii_case(words[0]));
    if let Some(sub) = words.get(1).and_then(|name| command.sub(name)) {
        command = sub;
    }
    command.arity_ok(words.len());
    command.cacheable_line(words.len());

    let (mut keys, mut all) = (Vec::new(), Vec::new());
    // `words[i]` panics where an argument is asked for that is not there.
    let result = command.for_each_key(words.len(), |i| words[i], |i| keys.push(i));
    let same = command.for_each_key_access(
        words.len(),
        |i| words[i],
        |i, access| {
            if access != Access::NotKey {
                all.push(i);
            }
        },
    );
    assert_eq!((same, &all), (result, &keys));
    let first = command.first_key(words.len(), |i| words[i]);
    if result.is_ok() {
        assert_eq!(first, keys.first().copied());
    }
    for i in keys {
        assert!(i > 0);
        assert!(slot(words[i]) < SLOTS);
        assert!(hash_tag(words[i]).len() <= words[i].len());
    }
});

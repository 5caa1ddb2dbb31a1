//! Tokenizers with all the files that may lie beside a vocabulary.

use std::{collections::BTreeMap, fs};

use darkroom::models::{Checkpoint, PromptTokenizer, TextWindow};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::{data, json};

#[derive(Deserialize)]
struct Reference {
    prompts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// The checkpoint whose vocabulary it is.
    base: String,
    /// JSON files by their names.
    files: BTreeMap<String, Value>,
    /// Keys to change in `tokenizer.json`, where the base has one.
    tokenizer_json: Option<Map<String, Value>>,
    /// For each prompt the ids that transformers gives, and how many it would give without a limit.
    ids: Vec<Vec<u32>>,
    whole: Vec<usize>,
}

#[test]
fn every_file_beside_a_vocabulary_counts_as_transformers_has_it() {
    let Reference { prompts, cases } = json("tokenizers.json");
    let mut failures = Vec::new();
    for case in &cases {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tokenizer");
        fs::create_dir(&folder).unwrap();
        let base = data(&format!("{}/model/tokenizer", case.base));
        if let Some(changes) = &case.tokenizer_json {
            let mut tokenizer: Map<String, Value> =
                serde_json::from_slice(&fs::read(base.join("tokenizer.json")).unwrap()).unwrap();
            tokenizer.extend(changes.clone());
            fs::write(folder.join("tokenizer.json"), serde_json::to_vec(&tokenizer).unwrap()).unwrap();
        } else {
            for file in ["vocab.json", "merges.txt"] {
                fs::copy(base.join(file), folder.join(file)).unwrap();
            }
        }
        for (file, value) in &case.files {
            fs::write(folder.join(file), value.to_string()).unwrap();
        }
        let checkpoint = Checkpoint::Directory(root.path().to_owned());
        let window = TextWindow { tokens: 32, vocabulary: 10_000 };
        let tokenizer = PromptTokenizer::load(&checkpoint, "tokenizer", window).unwrap();
        for (prompt, (ids, whole)) in prompts.iter().zip(case.ids.iter().zip(&case.whole)) {
            let found = tokenizer.encode("prompt", prompt).unwrap();
            let left_out = whole.saturating_sub(ids.len());
            if (&found.ids, found.left_out) != (ids, left_out) {
                let name = &case.name;
                failures.push(format!("{name}, {prompt:?}: {:?}, not {ids:?}; {left_out} left out", found));
            }
        }
    }
    assert!(cases.len() > 20 && prompts.len() > 20);
    assert!(failures.is_empty(), "{} failures: {:#?}", failures.len(), &failures[..failures.len().min(8)]);
}

//! A worker whose device runs out of memory: jobs fail by name, and the next ones are drawn.

use std::{
    sync::{Arc, mpsc as std_mpsc},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{ErrorCode, GenerationEngine, GenerationRequest, GenerationResponse};
use crate::{
    pipeline::scarcity::{Work, tiny},
    sampling::{SamplerKind, SamplingConfig},
};

/// What nothing here takes, so that what hangs fails.
const LONG: Duration = Duration::from_secs(60);

type Responses = mpsc::Receiver<GenerationResponse>;

async fn submit(engine: &GenerationEngine, prompt: &str) -> Responses {
    let (response_tx, responses) = mpsc::channel(64);
    let side = Some(64);
    let config = SamplingConfig {
        prompt: prompt.to_owned(),
        width: side,
        height: side,
        steps: 3,
        // One network pass a step.
        sampler: Some(SamplerKind::Ddim),
        ..SamplingConfig::default()
    };
    engine.submit(GenerationRequest::new(prompt, config), response_tx).await.unwrap();
    responses
}

/// The steps that a job was told, and its last word.
async fn rest(mut responses: Responses) -> (Vec<usize>, GenerationResponse) {
    let mut steps = Vec::new();
    loop {
        match tokio::time::timeout(LONG, responses.recv()).await.unwrap().expect("a job has a last word") {
            GenerationResponse::Progress { step, .. } => steps.push(step),
            last @ (GenerationResponse::Complete { .. } | GenerationResponse::Error { .. }) => return (steps, last),
            _ => {}
        }
    }
}

async fn completes(responses: Responses) {
    let (steps, last) = rest(responses).await;
    assert!(matches!(&last, GenerationResponse::Complete { images, .. } if images.len() == 1), "{last:?}");
    assert_eq!(steps, [1, 2, 3]);
}

#[tokio::test]
async fn jobs_without_memory_fail_by_name_or_are_drawn_with_less_and_the_worker_lives() {
    let pipeline = tiny("2");
    let (go_on, gate) = std_mpsc::channel::<()>();
    let (mut passes, mut pairs) = (0, 0);
    pipeline.scarcity.set(move |work| {
        let Work::Denoise { images } = work else { return false };
        passes += 1;
        pairs += usize::from(images == 2);
        if passes == 1 {
            // The others wait in the queue by then.
            let _ = gate.recv_timeout(LONG);
        }
        // The first job's second step, in both of its tries; the second step of the two that are drawn together.
        matches!(passes, 2 | 4) || (images == 2 && pairs == 2)
    });
    let mut engine = GenerationEngine::new(8);
    engine.start(Arc::new(pipeline));
    let mut too_large = submit(&engine, "too large").await;
    // Once it is drawn, nobody joins it.
    while !matches!(too_large.recv().await, Some(GenerationResponse::Started { .. })) {}
    let together = [submit(&engine, "a fox").await, submit(&engine, "an owl").await];
    go_on.send(()).unwrap();

    let (steps, last) = rest(too_large).await;
    assert_eq!(steps, [1]);
    let GenerationResponse::Error { code: ErrorCode::GenerationFailed, message, .. } = last else { panic!("{last:?}") };
    assert!(message.starts_with("64x64 pixels do not fit in memory: "), "{message}");
    for responses in together {
        completes(responses).await;
    }
    completes(submit(&engine, "the next").await).await;
    assert!(engine.is_alive());
}

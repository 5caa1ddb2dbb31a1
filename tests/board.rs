//! The job board: what it keeps, for how long, and what its listeners are told.

use std::{sync::Arc, time::Duration};

use darkroom::engine::{
    BoardLimits, CancelReason, Cancellation, Cancelling, Job, JobBoard, JobEvent, JobStatus, JobTicket, JobTimings,
    Listing, Missing, Outcome, PreviewImage, ResultImage, StepDone, Work,
};

fn board(limits: BoardLimits) -> JobBoard {
    JobBoard::new(limits)
}

fn add(board: &JobBoard, id: &str) -> Arc<Job> {
    board.add(JobTicket {
        job_id: id.into(),
        tag: None,
        request: Arc::default(),
        work: Work { images: 1, steps: 10, passes: 1, pixels: 1 },
        cancellation: Cancellation::new(),
    })
}

fn succeeded(bytes: usize) -> Outcome {
    let image =
        ResultImage { seed: 1, width: 1, height: 1, format: "png", media_type: "image/png", bytes: vec![0; bytes] };
    Outcome::Succeeded { images: vec![Arc::new(image)], timings: JobTimings::default(), warnings: Vec::new() }
}

fn step_done(step: usize, total: usize, step_time: Duration) -> StepDone {
    StepDone { step, total, step_time, images_together: 1 }
}

fn found(board: &JobBoard, id: &str) -> Result<(), Missing> {
    board.find(id).map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn an_ended_job_is_kept_for_its_time_and_then_known_as_expired() {
    let board = board(BoardLimits { result_ttl: Duration::from_secs(60), ..BoardLimits::default() });
    let (ended, waiting) = (add(&board, "a"), add(&board, "b"));
    board.end(&ended, succeeded(8));
    tokio::time::advance(Duration::from_millis(59_999)).await;
    found(&board, "a").unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(found(&board, "a"), Err(Missing::Expired));
    assert_eq!(found(&board, "never"), Err(Missing::Unknown));
    tokio::time::advance(Duration::from_secs(3600)).await;
    found(&board, "b").unwrap();
    board.end(&waiting, succeeded(8));
    found(&board, "b").unwrap();
}

#[tokio::test]
async fn newer_results_push_the_oldest_off_and_ids_are_forgotten_in_turn() {
    let limits = BoardLimits { max_ended_jobs: 3, max_result_bytes: 100, max_expired_ids: 2, ..BoardLimits::default() };
    let board = board(limits);
    for (id, bytes) in [("a", 10), ("b", 10), ("c", 10), ("d", 10)] {
        board.end(&add(&board, id), succeeded(bytes));
    }
    assert_eq!(found(&board, "a"), Err(Missing::Expired), "four jobs where three are kept");
    board.end(&add(&board, "e"), succeeded(90));
    assert_eq!([found(&board, "b"), found(&board, "c")], [Err(Missing::Expired); 2]);
    assert_eq!(found(&board, "a"), Err(Missing::Unknown), "only two ids are remembered");
    found(&board, "d").unwrap();
    board.end(&add(&board, "f"), succeeded(1000));
    assert_eq!(found(&board, "e"), Err(Missing::Expired));
    found(&board, "f").unwrap();
}

#[tokio::test]
async fn those_behind_are_told_each_time_they_move_up() {
    let board = board(BoardLimits::default());
    let jobs = ["a", "b", "c"].map(|id| add(&board, id));
    board.started(&jobs[0]);
    let (cancelling, job) = board.cancel("b", CancelReason::Requested).unwrap();
    assert_eq!((cancelling, job.status), (Cancelling::Stopping, JobStatus::Cancelled));
    board.end(&jobs[0], succeeded(1));
    assert_eq!(board.cancel("a", CancelReason::Requested).unwrap().0, Cancelling::EndedBefore);
    let mut events = jobs[2].subscribe(0);
    for (id, expected) in [(1, 2), (2, 1), (3, 0)] {
        let event = events.next().await.unwrap();
        assert_eq!(event.id, id);
        assert!(matches!(event.event, JobEvent::Queued { position, .. } if position == expected), "{event:?}");
    }
}

#[tokio::test]
async fn times_are_told_from_measured_steps() {
    let board = board(BoardLimits::default());
    let (first, second) = (add(&board, "a"), add(&board, "b"));
    assert_eq!((board.snapshot(&second).eta, board.next_place_in()), (None, None));
    board.started(&first);
    board.progress(&first, step_done(1, 10, Duration::from_secs(2)));
    assert_eq!(board.snapshot(&first).eta, Some(Duration::from_secs(18)));
    assert_eq!(board.snapshot(&second).eta, Some(Duration::from_secs(38)));
    assert_eq!(board.next_place_in(), Some(Duration::from_secs(18)));
}

#[tokio::test]
async fn those_that_are_drawn_together_end_together() {
    let board = board(BoardLimits::default());
    let [first, waiting, joined] = ["a", "b", "c"].map(|id| add(&board, id));
    board.started(&first);
    board.started(&joined);
    for job in [&first, &joined] {
        let done = StepDone { images_together: 2, ..step_done(1, 10, Duration::from_secs(4)) };
        board.progress(job, done);
    }
    // Two seconds a step and image, and nine steps of each are left.
    let eta = |job| board.snapshot(job).eta.map(|eta| eta.as_secs());
    assert_eq!([eta(&first), eta(&joined), eta(&waiting)], [Some(36), Some(36), Some(56)]);
    assert_eq!(board.next_place_in(), Some(Duration::from_secs(36)));
    // Whoever came later was accepted later.
    assert_eq!(board.snapshot(&waiting).queue_position, Some(1));
    board.end(&joined, succeeded(1));
    assert_eq!([eta(&first), eta(&joined), eta(&waiting)], [Some(18), None, Some(38)]);
}

#[tokio::test]
async fn a_late_or_slow_listener_gets_the_newest_progress_in_order_and_every_turn() {
    let board = board(BoardLimits::default());
    let job = add(&board, "a");
    let mut early = job.subscribe(0);
    board.started(&job);
    for step in 1..=500 {
        board.progress(&job, step_done(step, 500, Duration::from_millis(1)));
        let preview = PreviewImage { step, width: 1, height: 1, format: "jpeg", base64: String::new() };
        board.preview(&job, preview);
    }
    board.end(&job, succeeded(1));
    let mut ids = Vec::new();
    let (mut steps, mut previews) = (Vec::new(), Vec::new());
    while let Some(event) = early.next().await {
        ids.push(event.id);
        match event.event {
            JobEvent::Progress { step, .. } => steps.push(step),
            JobEvent::Preview(preview) => previews.push(preview.step),
            _ => {}
        }
    }
    assert!(ids.is_sorted() && steps.is_sorted());
    assert_eq!((ids[0], ids[1], ids.last()), (1, 2, Some(&1003)));
    assert_eq!((steps.len(), steps.last()), (64, Some(&500)));
    assert_eq!(previews, [499, 500]);

    let mut resumed = board.subscribe("a", 1001).unwrap();
    assert_eq!(resumed.next().await.unwrap().id, 1002);
    assert_eq!(resumed.next().await.unwrap().id, 1003);
    assert!(resumed.next().await.is_none());
    assert!(board.subscribe("a", 1003).unwrap().is_over());
    // A number that was never given out hides nothing that is still to come.
    let next = add(&board, "b");
    let mut ahead = next.subscribe(99);
    board.started(&next);
    assert_eq!(ahead.next().await.unwrap().event, JobEvent::Started);
}

#[tokio::test]
async fn a_listener_reads_to_the_end_of_a_job_that_the_board_has_let_go_of() {
    let board = board(BoardLimits { max_ended_jobs: 1, ..BoardLimits::default() });
    let job = add(&board, "a");
    let mut events = job.subscribe(0);
    board.end(&job, succeeded(1));
    board.end(&add(&board, "b"), succeeded(1));
    assert_eq!(found(&board, "a"), Err(Missing::Expired));
    assert!(matches!(events.next().await.unwrap().event, JobEvent::Queued { .. }));
    assert!(matches!(events.next().await.unwrap().event, JobEvent::Ended(_)));
}

#[tokio::test]
async fn only_the_first_end_counts() {
    let board = board(BoardLimits::default());
    let job = add(&board, "a");
    board.end(&job, Outcome::Cancelled { reason: CancelReason::Disconnected });
    board.end(&job, succeeded(1));
    assert_eq!(*job.ended().await, Outcome::Cancelled { reason: CancelReason::Disconnected });
    board.started(&job);
    assert_eq!(board.snapshot(&job).status, JobStatus::Cancelled);
}

#[tokio::test]
async fn a_list_is_newest_first_and_goes_on_where_it_ended() {
    let board = board(BoardLimits::default());
    for id in ["a", "b", "c", "d"] {
        add(&board, id);
    }
    board.cancel("b", CancelReason::Requested).unwrap();
    let ids = |listing: &Listing| {
        let (jobs, more) = board.list(listing);
        (jobs.into_iter().map(|job| job.job_id).collect::<Vec<_>>(), more)
    };
    let first = Listing { limit: 2, ..Listing::default() };
    assert_eq!(ids(&first), (vec!["d".into(), "c".into()], true));
    assert_eq!(ids(&Listing { after: Some("c".into()), ..first.clone() }), (vec!["b".into(), "a".into()], false));
    let queued = Listing { status: Some(JobStatus::Queued), limit: 9, after: None };
    assert_eq!(ids(&queued), (vec!["d".into(), "c".into(), "a".into()], false));
}

/*
 * The hand-over of one guest from agent S to agent T. Phases and events have the names of packages/protocol/src/source-state.ts and
 * target-state.ts, with _ for - and active_ for active (a word of Promela). See README.md for what is modelled and what each property says.
 *
 *   EPOCH_MAX         highest epoch: bounds attempts, takings-back and boots together
 *   LIVE              a moment comes after which nothing is lost and nobody crashes; checks the formula `live`
 *   HOST_CRASH        hosts go down too, and lose journal lines that were not synced
 *   ARBITER           a compare-and-swap on the epoch, in a third place
 *   SPLIT             post-copy: T may run the guest before it has all of its memory, and fetches the rest from S
 *   TRACES            random runs only: what comes too late is told, and bad luck is rare
 *   BUG_...           one mistake each, that the check must find
 *   SHOW_...          a rare step, that the check must find as well
 */
#ifdef TRACES
#define EPOCH_MAX 30
#define SET int
#else
#ifndef EPOCH_MAX
#define EPOCH_MAX 5
#endif
#define SET byte /* of epochs, up to 7 */
#endif

mtype = {
  none,
  setup, active_, device, committing, in_doubt, completed, failed, cancelled, taken_back, given_up, lost, /* phases of the source */
  postcopy_active, postcopy_paused,
  receiving, prepared, discarded, claimed,                                                               /* and of the target */
  rounds, pause, split, silence, unknown, resumed, placed, fail, cancel, fenced, give_up,                /* events */
  verified, commit, abort, superseded, outvoted, claim, starved,
  booted, offered, committed, aborted, owner, refused, gone                                              /* decisions, answers */
};
/* What a step asked for and is not done yet, one effect after the other. */
mtype:todo = {
  nothing, send_commit, send_abort, run_on, note_aborted, note_taken_back, run_raised, note_completed, let_go, note_lost, note_committed,
  send_prepared, run_it, send_active, note_refused, send_failed, run_claimed, note_owner
};

/* Agent S */
bool sUp = 1;
mtype sPhase = none;          /* none: no attempt in this process */
byte sEpoch, sBefore;         /* of the attempt, and of the guest before it */
bool sImage = 1;
byte sRun = 1;                /* epoch at which the guest runs at S; 0: it does not */
mtype:todo sTodo = nothing;
mtype sLast = booted;         /* last line of the journal, */
byte sLine = 1;               /* its epoch */
byte sHigh = 1;               /* and the highest one */

/* Agent T */
bool tUp = 1;
mtype tPhase = none;
byte tAttempt;                /* epoch of the attempt; a claimed copy runs one above it */
byte tRun;
mtype:todo tTodo = nothing;
mtype tLast = none;
byte tLine, tHigh;

#ifdef HOST_CRASH
bool sSameBoot = 1, tSameBoot = 1;  /* the last line was written under this start of the host's kernel */
#else
#define sSameBoot 1
#define tSameBoot 1
#endif

/*
 * The link. A message once sent may arrive now, later, twice, after a later one, or never: bit e of a set is the message of that name at
 * epoch e, and receiving does not remove it. Only an admission cannot come twice: it is the first word on a connection of its own.
 */
SET admit, state_, m_commit, m_abort, ask;                                  /* to T */
SET m_prepared, m_active, m_failed, m_discarded, m_gone, m_unknown;         /* to S; the answers to `ask` among them */

#ifdef SPLIT
SET halves;                   /* `state_` of this epoch says that pages are missing */
SET m_placed;                 /* to S: nothing is missing any more */
bool tHalf;                   /* pages of what T has are at S only, */
bool tCutOff;                 /* and the process of S that T speaks to has ended */
#define S_SPLIT (HAS(halves, sEpoch) && sImage) /* a new process of S knows nothing of it */
#define NOT_HALF tHalf = 0; tCutOff = 0
#define HEARD_AGAIN tCutOff = 0
#else
#define tHalf 0
#define tCutOff 0
#define S_SPLIT 0
#define NOT_HALF skip
#define HEARD_AGAIN skip
#endif

#ifdef ARBITER
mtype aOwner = offered;       /* offered: S, owner: T */
byte aEpoch = 1;
byte before[EPOCH_MAX + 1];   /* what an admission says of the guest's epoch before it */
#define A_IS(o, e) (aOwner == o && aEpoch == (e))
#else
#define A_IS(o, e) 1
#endif

#ifdef LIVE
bool calm;
#else
#define calm 0
#endif

/* What is checked. Each is 1 until it is violated. */
bool oneOwner = 1;            /* a */
bool stillOwner = 1;          /* b */
bool epochGrows = 1;          /* c */
bool noSilentRollback = 1;    /* e */
bool doubtRemembered = 1;     /* f */
bool imageKept = 1;           /* g */
bool wholeGuest = 1;          /* h */
byte sTop = 1, tTop;          /* highest epoch that ever ran there, */
byte tOwned;                  /* and that T came to own, and lacked nothing of */
bool unseen = 1;              /* a rare step that is looked for */

/* A crash ends what is on its way to that process; what else is lost is simply never received. Only when it becomes calm it must be said. */
#define LOSE(set) if :: set != 0 -> set = 0 :: true fi
#define HAS(set, e) (((set) >> (e)) & 1)
#define SEND(set, e) set = set | (1 << (e))
#define TAKE(set, e) if :: calm -> set = set & ~(1 << (e)) :: else fi
#ifdef BUG_EPOCH_NOT_CHECKED
#define HEARS(set, e) (set != 0)
#else
#define HEARS(set, e) HAS(set, e)
#endif

#ifdef TRACES
#define SELDOM :: true :: true :: true :: true :: true :: true :: true :: true :: true :: true :: true :: true
#else
#define SELDOM
#endif
#define S_IDLE (sUp && sTodo == nothing)
#define T_IDLE (tUp && tTodo == nothing)
#define S_MAY_ABORT (sPhase == setup || sPhase == active_ || sPhase == device)
#define S_OWNS (sImage && (S_MAY_ABORT || sPhase == none || sPhase == failed || sPhase == cancelled || sPhase == taken_back))
#define T_OWNS (tPhase == active_ || tPhase == claimed)
#define T_HOLDS (tPhase == receiving || tPhase == prepared || T_OWNS)
#define S_SERVES (sPhase == postcopy_active || sPhase == postcopy_paused)
#define T_IS_THERE (tUp && tPhase == active_ && tAttempt == sEpoch)
/* T will never run this attempt, and says so to whoever asks. */
#ifdef BUG_PREPARED_OF_ANY_BOOT
#define T_REFUSES_BY_JOURNAL (tLine == sEpoch && (tLast == refused || tLast == prepared))
#else
#define T_REFUSES_BY_JOURNAL (tLine == sEpoch && (tLast == refused || (tLast == prepared && tSameBoot)))
#endif
#define T_KNOWS (tPhase != none && tAttempt == sEpoch)
#define T_REFUSES ((T_KNOWS && tPhase == discarded) || (!T_KNOWS && T_REFUSES_BY_JOURNAL))
/* Nothing of this attempt is on its way any more. */
#define QUIET (tUp && tTodo == nothing && !HAS(m_commit | m_abort | m_prepared | m_active | m_discarded | m_gone | m_unknown | m_failed, sEpoch))
#define S_GONE (sLast == booted || sLast == offered || sLast == aborted || sLast == taken_back || sLast == lost || sLast == given_up)
#ifdef BUG_BOOT_UNSEEN
#define MAY_BOOT (S_GONE && sPhase != in_doubt)
#else
#define MAY_BOOT (S_GONE && !T_HOLDS && tRun == 0)
#endif
#ifdef ARBITER
#define ARBITER_MAY_CLAIM (A_IS(offered, before[tAttempt]) || A_IS(owner, tAttempt))
#else
#define ARBITER_MAY_CLAIM 1
#endif
#ifdef BUG_NOBODY_HELPS
#define MAY_HELP 0
#else
#define MAY_HELP 1
#endif
#define MAX(a, b) ((a) > (b) -> (a) : (b))

#ifdef BUG_EPOCH_NOT_RAISED
#define RAISE 0
#else
#define RAISE 1
#endif

inline sourceStep(event, phase) {
  sPhase = phase;
  printf("TRACE source event %e %e %d\n", event, sPhase, (sPhase == taken_back -> sEpoch + RAISE : sEpoch))
}
inline targetStep(event, phase) {
  tPhase = phase;
  printf("TRACE target event %e %e %d\n", event, tPhase, (tPhase == claimed -> tAttempt + 1 : tAttempt))
}
inline sourceWrites(decision, e) {
  sLast = decision;
  sLine = e;
  sHigh = MAX(sHigh, e);
  sameBootS()
}
inline targetWrites(decision, e) {
  tLast = decision;
  tLine = e;
  tHigh = MAX(tHigh, e);
  sameBootT()
}
#ifdef HOST_CRASH
inline sameBootS() { sSameBoot = 1 }
inline sameBootT() { tSameBoot = 1 }
#else
inline sameBootS() { skip }
inline sameBootT() { skip }
#endif
inline runAtSource(e) {
  printf("TRACE source effect run %d\n", e);
  sRun = e;
  sTop = MAX(sTop, e);
  oneOwner = !T_OWNS && tRun == 0;
  assert(oneOwner);
  epochGrows = e > tTop;
  assert(epochGrows)
}
inline runAtTarget(e) {
  printf("TRACE target effect run %d\n", e);
  tRun = e;
  tTop = MAX(tTop, e);
  oneOwner = !S_OWNS && sRun == 0;
  assert(oneOwner);
  epochGrows = e > sTop;
  assert(epochGrows)
}

/* S takes the guest back, or has none any more. `own`: nobody but the target or the arbiter said so. */
inline takeBack(event, own) {
  if
  :: sImage ->
     noSilentRollback = !own || tTop < sEpoch;
     assert(noSilentRollback);
     sourceStep(event, taken_back);
     sTodo = note_taken_back
  :: else ->
     sourceStep(event, lost);
     sTodo = note_lost
  fi
}

active proctype source() {
end:
  do
  /* What a step asked for. */
  :: d_step { sTodo == send_commit ->
       SEND(m_commit, sEpoch);
       printf("TRACE source effect send commit\n");
#ifdef BUG_JOURNAL_AFTER_SEND
       sTodo = (sLast == offered -> note_committed : nothing) }
  :: d_step { sTodo == note_committed -> sourceWrites(committed, sEpoch);
#endif
#ifdef BUG_FREE_AFTER_COMMIT
       sImage = 0;
       printf("TRACE source effect free\n");
       imageKept = tOwned >= sEpoch;
       assert(imageKept);
#endif
       sTodo = nothing }
  :: d_step { sTodo == send_abort -> SEND(m_abort, sEpoch); sTodo = run_on; printf("TRACE source effect send abort\n") }
  :: d_step { sTodo == run_on ->
#ifdef BUG_ABORT_KEEPS_EPOCH
       runAtSource(sEpoch);
#else
       runAtSource(sBefore);
#endif
       stillOwner = sImage && sRun == sBefore && !T_OWNS;
       assert(stillOwner);
       sTodo = note_aborted }
  :: d_step { sTodo == note_aborted -> sourceWrites(aborted, sEpoch); sTodo = nothing; printf("TRACE source effect journal aborted\n") }
  :: d_step { sTodo == note_taken_back ->
       sourceWrites(taken_back, sEpoch + RAISE);
       sTodo = run_raised;
       printf("TRACE source effect journal taken_back\n") }
  :: d_step { sTodo == run_raised ->
       runAtSource(sEpoch + RAISE);
       sTodo = nothing }
  :: d_step { sTodo == note_completed -> sourceWrites(completed, sEpoch); sTodo = let_go; printf("TRACE source effect journal completed\n") }
  :: d_step { sTodo == note_lost -> sourceWrites(lost, sEpoch); sTodo = nothing; printf("TRACE source effect journal lost\n") }
  :: d_step { sTodo == let_go -> sImage = 0; sTodo = nothing; printf("TRACE source effect free\n") }

  /* An attempt, up to COMMIT. */
  :: d_step { S_IDLE && !calm && sRun > 0 && !S_MAY_ABORT && MAX(sHigh, sRun) + 2 <= EPOCH_MAX ->
       sBefore = sRun;
       sEpoch = MAX(sHigh, sRun) + 1;
       sPhase = setup;
       sourceWrites(offered, sEpoch);
       SEND(admit, sEpoch);
#ifdef ARBITER
       before[sEpoch] = sBefore;
#endif
       printf("TRACE source offer %d setup %d\n", sBefore, sEpoch) }
  :: d_step { S_IDLE && sPhase == setup -> sourceStep(rounds, active_) }
  :: d_step { S_IDLE && (sPhase == setup || sPhase == active_) -> sRun = 0; SEND(state_, sEpoch); sourceStep(pause, device) }
  :: d_step { S_IDLE && sPhase == device && HEARS(m_prepared, sEpoch) ->
       TAKE(m_prepared, sEpoch);
#ifndef BUG_JOURNAL_AFTER_SEND
       sourceWrites(committed, sEpoch);
#endif
       sourceStep(prepared, committing);
       sTodo = send_commit }

  /* COMMIT is decided. */
#ifndef BUG_NEVER_ASKS
  :: d_step { S_IDLE && (sPhase == in_doubt || (!calm && sPhase == committing)) && !HAS(ask, sEpoch) && (!calm || QUIET) -> SEND(ask, sEpoch) }
#endif
#ifndef BUG_COMMIT_ONCE
  :: d_step { S_IDLE && sPhase == in_doubt && HEARS(m_prepared, sEpoch) && (calm || !HAS(m_commit, sEpoch)) ->
       TAKE(m_prepared, sEpoch);
       sourceStep(prepared, in_doubt);
       sTodo = send_commit }
#endif
#ifdef BUG_FREE_AT_ACTIVE
#define IS_LAST_WORD 1
#else
#define IS_LAST_WORD !S_SPLIT
#endif
  :: d_step { S_IDLE && (sPhase == committing || sPhase == in_doubt) && HEARS(m_active, sEpoch) && IS_LAST_WORD ->
       TAKE(m_active, sEpoch);
       sourceStep(active_, completed);
       sTodo = note_completed;
       imageKept = tOwned >= sEpoch || !sImage;
       assert(imageKept);
       wholeGuest = tOwned >= sEpoch; /* S has nothing: what T runs is all there is */
       assert(wholeGuest) }
  :: d_step { S_IDLE && sPhase == in_doubt && !sImage && HEARS(m_gone, sEpoch) -> /* it ran there and is no more: nothing is left to decide */
       TAKE(m_gone, sEpoch);
       sourceStep(active_, completed);
       sTodo = note_completed }
  :: d_step { S_IDLE && sPhase == committing -> sourceStep(silence, in_doubt) }
#ifdef SPLIT
  :: d_step { S_IDLE && sPhase == postcopy_active && (!calm || !T_IS_THERE) -> sourceStep(silence, postcopy_paused) }
#endif
#ifdef ARBITER
  /* Nobody else may own it by the arbiter's book before it runs here again. */
  :: d_step { S_IDLE && sPhase == in_doubt && sImage && HEARS(m_discarded, sEpoch) && (A_IS(offered, sBefore) || A_IS(owner, sEpoch)) ->
       aOwner = offered; aEpoch = sEpoch + 1 }
  :: d_step { S_IDLE && sPhase == in_doubt && sImage && A_IS(offered, sBefore) -> aOwner = offered; aEpoch = sEpoch + 1 }
  :: d_step { S_IDLE && sPhase == in_doubt && sImage && A_IS(offered, sEpoch + 1) -> takeBack(fenced, 1) }
#endif
  :: d_step { S_IDLE && (sPhase == committing || sPhase == in_doubt) && HEARS(m_discarded, sEpoch) && (!sImage || A_IS(offered, sEpoch + 1)) ->
       TAKE(m_discarded, sEpoch);
#ifdef SHOW_REFUSAL_BEFORE_DOUBT
       unseen = sPhase != committing;
#endif
       takeBack(discarded, 1);
       assert(unseen) }
#ifdef BUG_UNKNOWN_IS_REFUSAL
  :: d_step { S_IDLE && sPhase == in_doubt && HEARS(m_unknown, sEpoch) -> takeBack(discarded, 1) }
#endif
#ifdef BUG_GONE_IS_REFUSAL
  :: d_step { S_IDLE && sPhase == in_doubt && HEARS(m_gone, sEpoch) -> takeBack(discarded, 1) }
#endif
#ifdef BUG_TIMER_RESUMES
  :: d_step { S_IDLE && sPhase == in_doubt && sImage -> sourceStep(silence, failed); sTodo = send_abort }
#endif
#ifdef LIVE
  :: d_step { calm && S_IDLE && HAS(m_failed | m_gone | m_unknown, sEpoch) && sPhase == in_doubt && (sImage || !HAS(m_gone, sEpoch)) ->
       m_failed = m_failed & ~(1 << sEpoch); m_gone = m_gone & ~(1 << sEpoch); m_unknown = m_unknown & ~(1 << sEpoch) }
#endif

#ifdef SPLIT
  /* Post-copy. T asks for pages, S sends them, T says that none is missing: what of this is lost is asked and sent again. */
  :: d_step { S_IDLE && (sPhase == setup || sPhase == active_) ->
       sRun = 0;
       SEND(state_, sEpoch);
       SEND(halves, sEpoch);
       sourceStep(split, device) }
  :: d_step { S_IDLE && (sPhase == committing || sPhase == in_doubt) && HEARS(m_active, sEpoch) && !(IS_LAST_WORD) ->
       TAKE(m_active, sEpoch);
       sourceStep(active_, postcopy_active) }
  :: d_step { S_IDLE && sPhase == postcopy_active && T_IS_THERE && tHalf -> NOT_HALF; tOwned = tAttempt }
  :: d_step { S_IDLE && S_SERVES && T_IS_THERE && !tHalf && !HAS(m_placed, sEpoch) -> SEND(m_placed, sEpoch) }
#ifndef BUG_NEVER_RESUMES
  :: d_step { S_IDLE && sPhase == postcopy_paused && T_IS_THERE && tHalf -> sourceStep(resumed, postcopy_active) }
#endif
  :: d_step { S_IDLE && S_SERVES && HEARS(m_placed, sEpoch) ->
       TAKE(m_placed, sEpoch);
       sourceStep(placed, completed);
       sTodo = note_completed;
       imageKept = tOwned >= sEpoch;
       assert(imageKept) }
#endif

  /* The process that held the guest has ended, and its guest with it. standingOf() reads the journal. */
  :: d_step { !sUp ->
       sUp = 1;
       doubtRemembered = !(sLast == offered && sSameBoot && HAS(m_commit, sLine));
       assert(doubtRemembered);
       if
       :: sLast == committed -> sPhase = in_doubt; sEpoch = sLine; sBefore = sLine - 1
       :: else
       fi;
       printf("TRACE source restart %e %d\n", sPhase, sEpoch) }
  od
}

inline discard(event) {
  tTodo = (tPhase == prepared -> note_refused : send_failed);
  NOT_HALF;
  targetStep(event, discarded)
}
#define ADMITS(e) (T_IDLE && !T_HOLDS && HAS(admit, e) && e > tHigh)
inline takeAdmission(e) {
  admit = admit & ~(1 << e);
  tAttempt = e;
  tPhase = receiving;
  printf("TRACE target admitted receiving %d\n", e)
}
inline answer(set, word) {
  SEND(set, sEpoch);
  printf("TRACE target answer %e %d\n", word, sEpoch)
}

active proctype target() {
end:
  do
  /* What a step asked for. */
  :: d_step { tTodo == send_prepared ->
       SEND(m_prepared, tAttempt);
       printf("TRACE target effect send prepared\n");
#ifdef BUG_RUN_BEFORE_COMMIT
       runAtTarget(tAttempt);
#endif
       tTodo = nothing }
  :: d_step { tTodo == run_it ->
       runAtTarget(tAttempt);
#ifdef BUG_OWNER_AFTER_RUN
       tTodo = note_owner }
  :: d_step { tTodo == note_owner -> targetWrites(owner, tAttempt);
#endif
       tTodo = send_active }
  :: d_step { tTodo == run_claimed -> runAtTarget(tAttempt + 1); tTodo = nothing }
  :: d_step { tTodo == send_active ->
       if
       :: tCutOff -> skip
       :: else -> SEND(m_active, tAttempt)
       fi;
       tTodo = nothing;
       printf("TRACE target effect send active\n") }
  :: d_step { tTodo == note_refused -> targetWrites(refused, tAttempt); tTodo = send_failed; printf("TRACE target effect journal refused\n") }
  :: d_step { tTodo == send_failed -> SEND(m_failed, tAttempt); tTodo = let_go; printf("TRACE target effect send failed\n") }
  :: d_step { tTodo == let_go -> tRun = 0; tTodo = nothing; printf("TRACE target effect free\n") }

  /* Above the journal's highest epoch, and only where no guest is. */
#ifdef TRACES
  :: d_step { ADMITS(sEpoch) -> takeAdmission(sEpoch) }
#else
  :: d_step { ADMITS(2) -> takeAdmission(2) }
  :: d_step { ADMITS(3) -> takeAdmission(3) }
#if EPOCH_MAX > 4
  :: d_step { ADMITS(4) -> takeAdmission(4) }
#endif
#if EPOCH_MAX > 5
  :: d_step { ADMITS(5) -> takeAdmission(5) }
#endif
#endif
  :: d_step { T_IDLE && (tPhase == receiving || tPhase == prepared) && (admit >> (tAttempt + 1)) != 0 -> discard(superseded) }
  :: d_step { T_IDLE && tPhase == receiving && HEARS(state_, tAttempt) ->
       targetWrites(prepared, tAttempt);
#ifdef SPLIT
       tHalf = HAS(halves, tAttempt);
#endif
       targetStep(verified, prepared);
       tTodo = send_prepared }
  :: d_step { T_IDLE && (tPhase == receiving || tPhase == prepared) && HEARS(m_abort, tAttempt) ->
       TAKE(m_abort, tAttempt);
       discard(abort) }

#ifdef ARBITER
#ifndef BUG_TARGET_SKIPS_ARBITER
#define ARBITER_AGREES A_IS(owner, tAttempt)
  :: d_step { T_IDLE && tPhase == prepared && HEARS(m_commit, tAttempt) && A_IS(offered, before[tAttempt]) -> aOwner = owner; aEpoch = tAttempt }
  :: d_step { T_IDLE && tPhase == prepared && HEARS(m_commit, tAttempt) && !A_IS(offered, before[tAttempt]) && !A_IS(owner, tAttempt) ->
       TAKE(m_commit, tAttempt);
       discard(outvoted) }
#endif
#endif
#ifndef ARBITER_AGREES
#define ARBITER_AGREES 1
#endif
  :: d_step { T_IDLE && tPhase == prepared && HEARS(m_commit, tAttempt) && ARBITER_AGREES ->
       TAKE(m_commit, tAttempt);
#ifndef BUG_OWNER_AFTER_RUN
       targetWrites(owner, tAttempt);
#endif
       targetStep(commit, active_);
       tOwned = (tHalf -> tOwned : tAttempt);
       tTodo = run_it }
  :: d_step { T_IDLE && T_OWNS && HEARS(m_commit, tAttempt) && (calm || !HAS(m_active, tAttempt)) ->
       TAKE(m_commit, tAttempt);
       targetStep(commit, tPhase);
#ifdef SHOW_COMMIT_AFTER_CLAIM
       unseen = tPhase != claimed;
#endif
       assert(unseen);
       tTodo = send_active }

#ifdef SPLIT
  /* S asks without an image: what is missing here is nowhere any more. */
#define ASKS_WITHOUT_IMAGE (sUp && sPhase == in_doubt && !sImage && HAS(ask, sEpoch) && T_KNOWS)
#ifdef BUG_WHOLE_STARVED
#define STARVES (tPhase == active_)
#else
#define STARVES (tPhase == active_ && tHalf)
#endif
#ifdef BUG_HALF_COMMITTED
#define REFUSES_HALF 0
#else
#define REFUSES_HALF (tPhase == prepared && tHalf)
#endif
#define IS_ANSWERED !(ASKS_WITHOUT_IMAGE && (STARVES || REFUSES_HALF))
  :: d_step { T_IDLE && ASKS_WITHOUT_IMAGE && STARVES ->
       imageKept = tHalf;
       assert(imageKept);
       NOT_HALF;
       targetStep(starved, lost);
#ifdef SHOW_STARVED
       unseen = 0;
#endif
       assert(unseen);
       tTodo = let_go }
  :: d_step { T_IDLE && ASKS_WITHOUT_IMAGE && REFUSES_HALF -> discard(fail) }
#else
#define IS_ANSWERED 1
#endif
  /* Who owns it? From memory, or from the journal: standingOf(). */
  :: d_step { tUp && HAS(ask, sEpoch) && IS_ANSWERED ->
       TAKE(ask, sEpoch);
       if
       :: T_KNOWS ->
          if
          :: tPhase == prepared -> HEARD_AGAIN; answer(m_prepared, prepared)
          :: T_OWNS -> answer(m_active, active_)
          :: tPhase == discarded -> answer(m_discarded, discarded)
          :: tPhase == lost -> answer(m_gone, gone)
          :: tPhase == receiving -> skip
          fi
       :: else ->
          if
          :: T_REFUSES_BY_JOURNAL -> answer(m_discarded, discarded)
          :: (tLast == owner && tLine == sEpoch) || (tLast == claimed && tLine == sEpoch + 1) -> answer(m_gone, gone)
          :: else -> answer(m_unknown, unknown)
          fi
       fi }
#ifdef LIVE
  :: d_step { calm && T_IDLE && HAS(m_commit | m_abort, sEpoch) && !(T_HOLDS && tAttempt == sEpoch) ->
       m_commit = m_commit & ~(1 << sEpoch); m_abort = m_abort & ~(1 << sEpoch) }
  :: d_step { calm && T_IDLE && T_OWNS && HAS(m_abort, sEpoch) -> m_abort = m_abort & ~(1 << sEpoch) }
#endif
  :: d_step { !tUp -> tUp = 1; printf("TRACE target restart none 0\n") }
  od
}

/* Deadlines, links and errors; and people, who look at both sides before they say that one of them is fenced. */
active proctype surroundings() {
end:
  do
  SELDOM
  :: d_step { S_IDLE && S_MAY_ABORT -> sourceStep(fail, failed); sTodo = send_abort }
  :: d_step { T_IDLE && tPhase == receiving -> discard(silence) }
  :: d_step { !calm && T_IDLE && (tPhase == receiving || tPhase == prepared) -> discard(fail) }
  /* The disk is full: an effect that fails stops none of the others. */
  :: d_step { !calm && sTodo == note_aborted -> sTodo = nothing; printf("TRACE source effect failed\n") }
  :: d_step { !calm && sTodo == note_taken_back -> sTodo = run_raised; printf("TRACE source effect failed\n") }
  :: d_step { !calm && sTodo == note_completed -> sTodo = let_go; printf("TRACE source effect failed\n") }
  :: d_step { !calm && sTodo == note_lost -> sTodo = nothing; printf("TRACE source effect failed\n") }
  :: d_step { !calm && tTodo == note_refused -> tTodo = send_failed; printf("TRACE target effect failed\n") }

  :: d_step { !calm && S_IDLE && S_MAY_ABORT -> sourceStep(cancel, cancelled); sTodo = send_abort }
  :: d_step { !calm && T_IDLE && (tPhase == receiving || tPhase == prepared) -> discard(cancel) }
  :: d_step { !calm && S_IDLE && sPhase == in_doubt && !HAS(m_abort, sEpoch) -> SEND(m_abort, sEpoch) } /* COMMIT called back, nobody fenced */
#define MAY_END (sPhase == in_doubt || sPhase == postcopy_paused)
  :: d_step { !calm && S_IDLE && MAY_END -> sImage = 0; sourceWrites(given_up, sEpoch); sourceStep(give_up, given_up); sTodo = let_go }
  /* Fenced: the process that had the copy, or ran the guest, has ended. */
  :: d_step { S_IDLE && MAY_END && sImage && !(T_HOLDS && tAttempt == sEpoch) && (!calm || (MAY_HELP && tUp && !T_REFUSES)) ->
#ifdef ARBITER
       aOwner = offered; aEpoch = sEpoch + 1;
#endif
#ifdef SHOW_FENCED_IN_POSTCOPY
       unseen = sPhase != postcopy_paused;
#endif
       takeBack(fenced, 0);
       assert(unseen) }
  /* The source's process has ended, or its operator gave up what it had, and none newer than the copy's attempt ever ran there. Half is no copy. */
#ifdef BUG_CLAIM_UNFENCED
#define S_IS_FENCED 1
#else
#define S_IS_FENCED (!sImage && sTop <= tAttempt)
#endif
#ifdef BUG_HALF_CLAIMED
#define IS_COPY 1
#else
#define IS_COPY !tHalf
#endif
  :: d_step { T_IDLE && tPhase == prepared && IS_COPY && S_IS_FENCED && (!calm || (MAY_HELP && sUp && sPhase != in_doubt)) && ARBITER_MAY_CLAIM ->
#ifdef ARBITER
       aOwner = owner; aEpoch = tAttempt + 1;
#endif
       targetWrites(claimed, tAttempt + 1);
       targetStep(claim, claimed);
       tOwned = tAttempt;
       wholeGuest = !tHalf;
       assert(wholeGuest);
       tTodo = run_claimed }
#ifndef ARBITER
  /* A new guest of the same name: only where the other side is seen to hold nothing, and above every epoch that either has met. */
  :: d_step { !calm && S_IDLE && !sImage && MAX(sHigh, tHigh) + 1 <= EPOCH_MAX && MAY_BOOT ->
       sPhase = none;
       sEpoch = 0;
       sImage = 1;
       sHigh = MAX(sHigh, tHigh) + 1;
       printf("TRACE source boot %d\n", sHigh);
       sourceWrites(booted, sHigh);
       runAtSource(sHigh) }
#endif
  od
}

#ifdef SPLIT
#define CUT_OFF m_placed = 0; tCutOff = tHalf
#else
#define CUT_OFF skip
#endif
inline crashSource() {
  m_prepared = 0; m_active = 0; m_failed = 0; m_discarded = 0; m_gone = 0; m_unknown = 0; CUT_OFF;
  ask = 0; /* its answer would come on a connection that has ended */
  sUp = 0; sPhase = none; sEpoch = 0; sBefore = 0; sImage = 0; sRun = 0; sTodo = nothing
}
inline crashTarget() {
  admit = 0; state_ = 0; m_commit = 0; m_abort = 0; ask = 0; /* connections end with their process, and what came on them unread */
  NOT_HALF;
  tUp = 0; tPhase = none; tAttempt = 0; tRun = 0; tTodo = nothing
}

active proctype chaos() {
end:
  do
  SELDOM SELDOM SELDOM
#ifdef TRACES
  /* What a peer says too late, twice or for nothing. */
  :: d_step { S_IDLE && sEpoch > 0 && sPhase != device && sPhase != in_doubt && HAS(m_prepared, sEpoch) -> sourceStep(prepared, sPhase) }
  :: d_step { S_IDLE && sEpoch > 0 && sPhase != committing && sPhase != in_doubt && HAS(m_active, sEpoch) -> sourceStep(active_, sPhase) }
  :: d_step { S_IDLE && sEpoch > 0 && sPhase != committing && sPhase != in_doubt && HAS(m_discarded, sEpoch) -> sourceStep(discarded, sPhase) }
  :: d_step { S_IDLE && sEpoch > 0 && sPhase != committing && sPhase != postcopy_active -> sourceStep(silence, sPhase) }
#ifdef SPLIT
  :: d_step { S_IDLE && sEpoch > 0 && !S_SERVES && HAS(m_placed, sEpoch) -> sourceStep(placed, sPhase) }
#endif
  :: d_step { S_IDLE && sEpoch > 0 && HAS(m_unknown, sEpoch) -> sourceStep(unknown, sPhase) }
  :: d_step { T_IDLE && tPhase != none && tPhase != receiving && tPhase != prepared && HAS(m_abort, tAttempt) -> targetStep(abort, tPhase) }
  :: d_step { T_IDLE && (tPhase == receiving || tPhase == discarded || tPhase == lost) && HAS(m_commit, tAttempt) -> targetStep(commit, tPhase) }
  :: d_step { T_IDLE && tPhase != none && tPhase != receiving -> targetStep(silence, tPhase) }
#endif
  :: d_step { !calm && sUp -> crashSource(); printf("TRACE source crash\n") }
  :: d_step { !calm && tUp -> crashTarget(); printf("TRACE target crash\n") }
#ifdef HOST_CRASH
  /* Lines written in the pause and after it may be lost, the last first. `offered`, `taken_back`, `claimed` and `booted` are synced. */
  :: atomic { !calm && sUp -> crashSource(); sSameBoot = 0; printf("TRACE source host-crash\n");
       do
       :: break
       :: sLast == completed || sLast == given_up || sLast == lost -> sLast = committed; printf("TRACE source forgets\n")
       :: sLast == committed || sLast == aborted -> sLast = offered; printf("TRACE source forgets\n")
       od }
  :: atomic { !calm && tUp -> crashTarget(); tSameBoot = 0; printf("TRACE target host-crash\n");
       do
       :: break
       :: tLast == owner || tLast == refused -> tLast = prepared; printf("TRACE target forgets\n")
       :: tLast == prepared -> tLast = none; tLine = 0; tHigh = 0; printf("TRACE target forgets\n")
       od }
#endif
#ifdef LIVE
#ifdef SPLIT
#define LOSE_PLACED LOSE(m_placed)
#else
#define LOSE_PLACED skip
#endif
  :: atomic { !calm -> LOSE(admit); LOSE(state_); LOSE(m_commit); LOSE(m_abort); LOSE(ask); LOSE(m_prepared); LOSE(m_active); LOSE(m_discarded); LOSE_PLACED; calm = 1 }
#endif
  od
}

/* (a) in every state, and not only when somebody begins to run. */
active proctype watch() {
end:
  d_step { (S_OWNS && T_OWNS) || (sRun > 0 && tRun > 0) -> oneOwner = 0; assert(oneOwner) }
}

#ifdef LIVE
#define SOMEBODY_RUNS (sRun > 0 || (tRun > 0 && !tHalf))
/* No image, or at most a copy that the guest went past: it ran at S at a higher epoch, or the arbiter gave it to S. */
#define OUTDATED (tPhase == prepared && (sTop > tAttempt || !ARBITER_MAY_CLAIM))
#define NOTHING_LEFT (!sImage && (tHalf || (!T_OWNS && (tPhase != prepared || OUTDATED)))) /* half of it is nothing without the other half */
ltl live { [] (calm -> <> (SOMEBODY_RUNS || NOTHING_LEFT)) }
#endif

/* The ownership of one session (ADR 8), as a model that `make model-check` searches exhaustively with spin.
 *
 * SERVERS servers share a store. Each option of a `do` is one step that nothing interrupts: a script of the
 * store, or what a server does between two awaits. Between two steps anything may happen elsewhere, so a server
 * may freeze for as long as it likes, also with a call to the store under way. Any server may be asked for the
 * session at any time. Equal inputs give equal states, so the session's state is its number of steps.
 *
 * WITHOUT_FENCE and the other switches each leave out a part of the protocol, and must lead to an error.
 */
#ifndef SERVERS
#define SERVERS 2
#endif
#ifndef MAX_STEPS
#define MAX_STEPS 2     /* of the session */
#endif
#ifndef MAX_FETCHES
#define MAX_FETCHES 2   /* claims for clients, which move the session */
#endif
#ifndef MAX_LOSSES
#define MAX_LOSSES 1    /* how often the store loses something; what is true is kept for one loss only */
#endif
#ifndef MAX_FAILURES
#define MAX_FAILURES 1  /* calls that fail, done or not, and crashes */
#endif

#define NOBODY 255      /* the owner of a row whose server is no more: a token that nobody has */
#define MAX(a, b) ((a) > (b) -> (a) : (b))

mtype = { NONE, SAVE, VERIFY, RELEASE, DELETE, FETCH, REGAIN,  /* store/base.py WriteKind; why a server claims */
          DONE, GONE, NOT_OWNED,                               /* store/base.py WriteStatus */
          MISSING, EXISTS, NEWER, CREATED, TAKEN };            /* store/base.py ClaimStatus */

/* The row (none at epoch 0), and the epoch of a deletion that is remembered; and an older copy of them. */
typedef Row { byte epoch; byte owner; bool is_released; byte steps; byte ended };
Row row, old;

/* What is true, whoever knows it. */
byte top = 1;       /* the highest epoch ever given out */
byte claimant;      /* whose claim was the last one */
byte stored;        /* the most steps that the row ever had, which a client may have been told */
bool has_lost;      /* the store lost something, and no write at the highest epoch has made up for it */
bool is_shared;     /* after a loss the highest epoch was given out twice */
bool is_deleted;    /* the row was deleted, by its owner */
bool has_copy;      /* the older copy is not the row as it began */
byte num_fetches, num_losses, num_failures;

#define NO_ROW row.epoch = 0; row.owner = NOBODY; row.is_released = false; row.steps = 0
#define IS_MINE(at) (row.epoch == (at) && row.owner == me)

inline make_up() {  /* a loss is over when the row, at the highest epoch, has all that it ever had */
    has_lost = has_lost && !(row.epoch == top && !is_shared && row.steps >= stored && !is_deleted)
}

/* -- The store: redis_scripts.py WRITE and CLAIM, sqlite_rows.py write and claim ------------------------- */

inline apply_write() {
    at_epoch = (row.epoch -> row.epoch : row.ended);
#ifndef WITHOUT_OWN
    is_own = row.epoch > 0 && row.owner == me && !row.is_released;
#endif
    if
    :: row.epoch == 0 -> outcome = GONE
#ifndef WITHOUT_FENCE
    :: row.epoch > 0 && !(IS_MINE(call_epoch) && (!row.is_released || call == RELEASE)) ->
        outcome = NOT_OWNED;
        /* What a client closed is deleted, unless another server has claimed the row since. */
        assert(call != DELETE || is_own || claimant != me || has_lost)
    :: row.epoch > 0 && IS_MINE(call_epoch) && (!row.is_released || call == RELEASE) ->
#else
    :: row.epoch > 0 ->
#endif
        outcome = DONE;
        assert(claimant == me || has_lost);     /* of all owners, only the last one writes */
        assert(call_epoch == top || has_lost);  /* no write at an old epoch is done */
        if
        :: call == SAVE || call == RELEASE ->
            row.steps = call_steps;
            row.is_released = (call == RELEASE);
            stored = MAX(stored, row.steps);
            make_up()
        :: call == DELETE ->
#ifndef WITHOUT_REMEMBERED_ENDS
            row.ended = (row.epoch > 1 -> row.epoch : 0);
#endif
            NO_ROW;
            is_deleted = true
        :: call == VERIFY -> skip
        fi
    fi
}

#ifndef WITHOUT_BOUND
#define IS_NEWER_ROW (call == REGAIN && MAX(row.epoch, row.ended) > most)
#else
#define IS_NEWER_ROW false
#endif

inline apply_claim() {  /* a FETCH may find and take over; a REGAIN creates where the write found the row gone */
    if
    :: IS_NEWER_ROW -> outcome = NEWER
    :: else ->
        if
        :: row.epoch == 0 && call == REGAIN && was_gone ->
            assert(!is_deleted || has_lost);          /* a deleted session never returns from an old copy */
            outcome = CREATED; at_epoch = MAX(least, row.ended + 1);
            row.steps = call_steps; row.ended = 0
        :: row.epoch == 0 && !(call == REGAIN && was_gone) -> outcome = MISSING
        :: row.epoch > 0 && call == REGAIN && was_gone -> outcome = EXISTS
        :: row.epoch > 0 && !(call == REGAIN && was_gone) ->
            assert(!is_deleted || has_lost);
            assert(row.steps >= stored || has_lost);  /* the next owner has every step that was stored */
            outcome = TAKEN; at_epoch = MAX(least, row.epoch + 1);
            call_steps = row.steps
        fi
    fi;
    if
    :: outcome == CREATED || outcome == TAKEN ->
        assert(at_epoch > row.epoch && at_epoch > row.ended);
        row.epoch = at_epoch; row.owner = me; row.is_released = false;
        is_shared = (at_epoch == top || (is_shared && at_epoch < top));
        top = MAX(top, at_epoch); claimant = me;
        if
        :: call == REGAIN && outcome == TAKEN     /* the row is written over next */
        :: else -> make_up()
        fi
    :: else
    fi
}

#define LOSES num_losses < MAX_LOSSES -> num_losses++; has_lost = true
#define COPY(a, b) a.epoch = b.epoch; a.owner = b.owner; a.is_released = b.is_released; \
                   a.steps = b.steps; a.ended = b.ended

active proctype Losses() {
end:
    do
    :: d_step { LOSES; NO_ROW; row.ended = 0 }          /* emptied */
    :: d_step { LOSES; NO_ROW }                         /* evicted */
    :: d_step { LOSES; COPY(row, old) }                 /* rolled back */
    :: d_step { num_losses < MAX_LOSSES && !has_copy -> has_copy = true; COPY(old, row) }
    od
}

/* -- A server ------------------------------------------------------------------------------------------- */

inline send(kind) {  /* changes.py take: what the call holds is as the session is now */
    call = kind; call_epoch = epoch; call_steps = (kind == VERIFY -> 0 : steps); call_asked = is_asked; is_applied = false
}

inline lose() {  /* changes.py lose */
    is_live = false; is_asked = false; is_changed = false; is_draining = false;
    epoch = 0; steps = 0
}

inline end_call() {
    call = NONE; outcome = NONE; is_applied = false; call_epoch = 0; call_steps = 0; call_asked = false;
    at_epoch = 0; is_own = false; was_gone = false; was_older = false; least = 1; most = 0
}

inline answer() {  /* a request that had to wait for the confirmation */
    assert(was_owner);                          /* no answer comes from an old copy */
    is_asked = false; was_owner = false
}

inline receive_written() {  /* changes.py complete, refused_writes.py resolve */
    if
    :: call == DELETE ->                        /* changes.py complete: regained meanwhile */
        leaving = (outcome == NOT_OWNED && is_own -> at_epoch : 0);
        end_call()
    :: call != DELETE && outcome == DONE ->
        if
        :: call == RELEASE -> lose()            /* write_behind.py stop */
        :: call != RELEASE && is_live ->
            if
#ifndef WITHOUT_CONFIRMATION_AFTERWARDS
            :: call_asked && is_asked -> answer()
#else
            :: is_asked -> answer()
#endif
            :: else
            fi
        :: else
        fi;
        end_call()
    :: call != DELETE && outcome != DONE && at_epoch > call_epoch && !(is_own && outcome == NOT_OWNED) ->
        if
        :: is_live ->
            assert(claimant != me);             /* none drops a session that no other server has claimed */
            lose()
        :: else
        fi;
        end_call()
    :: call != DELETE && outcome != DONE && !(at_epoch > call_epoch && !(is_own && outcome == NOT_OWNED)) ->
        if
        :: is_live ->                           /* refused_writes.py _claim */
            was_gone = (outcome == GONE);
            was_older = (at_epoch < call_epoch);
            most = (is_own -> MAX(epoch, at_epoch) : epoch);
#ifndef WITHOUT_RISING_EPOCHS
            least = epoch + 1;
#endif
            call = REGAIN; call_steps = steps; is_applied = false; outcome = NONE
        :: else -> end_call()
        fi
    fi
}

/* refused_writes.py _is_further: of two owners at one epoch, the one with more steps keeps the session. */
#define ROW_IS_FURTHER (outcome == TAKEN && !was_older && call_steps > steps)

inline receive_claimed() {
    if
    :: call == FETCH && outcome == TAKEN ->     /* stored_sessions.py fetch, _adopt */
        is_live = true; epoch = at_epoch; steps = call_steps; is_changed = false
    :: call == REGAIN && (outcome == CREATED || outcome == TAKEN) ->  /* refused_writes.py _conclude */
        if
        :: is_live && ROW_IS_FURTHER -> lose()        /* the row is this server's, and stays as it is */
        :: is_live && !ROW_IS_FURTHER ->
            assert(at_epoch > epoch);           /* an epoch never falls */
            epoch = at_epoch; is_changed = true
        :: else
        fi
    :: call == REGAIN && !(outcome == CREATED || outcome == TAKEN) -> is_changed = is_live
    :: call == FETCH && outcome != TAKEN -> skip
    fi;
    end_call()
}

inline fail() {  /* changes.py fail, put_back: a request that waits is answered from memory, or refused */
    is_changed = is_live && (is_changed || call != VERIFY);
    is_asked = false; was_owner = false;
    end_call()
}

inline crash() {  /* the server comes back with nothing, and with another token */
    end_call(); lose(); leaving = 0; was_owner = false;
    row.owner = (row.owner == me -> NOBODY : row.owner);
    old.owner = (old.owner == me -> NOBODY : old.owner)
}

#define AT_WORK (is_live && !is_draining)

proctype Server(byte me) {
    bool is_live, is_changed, is_asked, is_draining, was_owner;
    byte epoch, steps;
    byte leaving;       /* the epoch of a row that is to be deleted */
    mtype call = NONE;  /* the call to the store that is under way: write_behind.py has one at a time */
    mtype outcome = NONE;
    byte call_epoch, call_steps, at_epoch, most;
    byte least = 1;
    bool call_asked, is_applied, is_own, was_gone, was_older;

    if
    :: me == 0 -> is_live = true; epoch = 1     /* stored_sessions.py create */
    :: else
    fi;
end:
    do
    /* The engine: a step, a request after a pause, a close, an eviction. None waits for the store. */
    :: d_step { AT_WORK && !is_asked && steps < MAX_STEPS -> steps++; is_changed = true }
    :: d_step { AT_WORK && !is_asked ->         /* stored_sessions.py must_confirm */
        is_asked = true; was_owner = (claimant == me || has_lost);
#ifdef WITHOUT_CONFIRMATION
        answer()
#endif
        }
    :: d_step { AT_WORK && !is_asked && leaving == 0 -> leaving = epoch; lose() }
    :: d_step { AT_WORK && !is_asked && !is_changed && call == NONE -> lose() }

    /* The task of the store, write_behind.py: what leaves goes before everything else. */
    :: d_step { call == NONE && leaving > 0 -> send(DELETE); call_epoch = leaving }
    :: d_step { call == NONE && leaving == 0 && AT_WORK && is_changed -> send(SAVE); is_changed = false }
    :: d_step { call == NONE && leaving == 0 && AT_WORK && !is_changed && is_asked -> send(VERIFY) }
    :: d_step { call == NONE && leaving == 0 && is_live ->      /* a drain, until the row is released */
        is_draining = true; send(RELEASE); is_changed = false }
    :: d_step { call == NONE && leaving == 0 && !is_live && num_fetches < MAX_FETCHES ->
        num_fetches++; send(FETCH) }
    :: d_step { call != NONE && !is_applied ->
        if
        :: call == FETCH || call == REGAIN -> apply_claim()
        :: else -> apply_write()
        fi;
        was_owner = was_owner || (call_asked && (claimant == me || has_lost));
        is_applied = true }
    :: d_step { is_applied ->
        if
        :: call == FETCH || call == REGAIN -> receive_claimed()
        :: else -> receive_written()
        fi }
    :: d_step { call != NONE && !is_draining && num_failures < MAX_FAILURES -> num_failures++; fail() }
    :: d_step { num_failures < MAX_FAILURES -> num_failures++; crash() }
    od
}

init {
    atomic {
        row.epoch = 1; old.epoch = 1;           /* opened at server 0 */
        byte each;
        for (each : 0 .. SERVERS - 1) { run Server(each) }
    }
}

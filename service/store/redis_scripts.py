"""The scripts of a Redis store, in Lua: each changes rows atomically. Does not know connections.

KEYS are the rows and, as the last key, the sorted set of the rows' last uses. A row is a hash of epoch,
owner, is_released, used_at and, once saved, record. A released row keeps its last owner's token, so that a
script recognises a repeated release. Beside the rows, the epoch of a deleted row that had several owners is
remembered for a day, and each living owner has a key that expires unless it is renewed. When memory is
short, a script fails before the first thing that it adds, so no row is left half done.
"""

# The key that remembers the deletion of a row.
_ENDED = """
local function ended(row)
    return "streamcell:ended:" .. string.sub(row, 1 + string.len("streamcell:session:"))
end
"""

# Whether an owner lives. Its key may be missing because the server has just restarted: an owner is dead only
# if nothing is heard of it for a second and a half after the first doubt. The doubt of an owner that closed
# its store is old at once.
_ALIVE = """
local function is_alive(owner)
    if redis.call("EXISTS", "streamcell:alive:" .. owner) == 1 then
        return true
    end
    local doubt = "streamcell:doubt:" .. owner
    redis.call("SET", doubt, 1, "NX", "PX", 60000)
    return redis.call("PTTL", doubt) > 58500
end
"""

# ARGV: owner; "1" if the owner lives, "0" if it has closed its store.
BEAT = """
local alive, doubt = "streamcell:alive:" .. ARGV[1], "streamcell:doubt:" .. ARGV[1]
if ARGV[2] == "1" then
    redis.call("SET", alive, 1, "PX", 3000)
    redis.call("DEL", doubt)
else
    redis.call("DEL", alive)
    redis.call("SET", doubt, 1, "PX", 58000)
end
"""

# ARGV: owner, now; then for each row its letters, its least and its most epoch, and its record. Letters: "c"
# may create, "f" may find, "t" may take over, "r" a record is given, "a" asks. What is asked goes to the
# owner's channel; if the channel is forbidden, the owner does not hear it, and the claim is answered all the
# same.
# Returns for each row: status, a value of base.ClaimStatus; epoch; used_at; record.
CLAIM = (
    _ENDED
    + _ALIVE
    + """
local owner, now, used = ARGV[1], ARGV[2], KEYS[#KEYS]
local replies = {}
for i = 1, #KEYS - 1 do
    local row, may, given = KEYS[i], ARGV[4 * i - 1], ARGV[4 * i + 2]
    local least, most = tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1])
    local last_owner, is_released, last = unpack(redis.call("HMGET", row, "owner", "is_released", "epoch"))
    last = tonumber(last or redis.call("GET", ended(row)) or 0)
    if last > most then
        replies[i] = {"newer", last, "0", false}
    elseif not last_owner and string.find(may, "c") then
        local epoch = math.max(least, 1 + last)
        redis.call("HSET", row, "epoch", epoch, "owner", owner, "is_released", 0, "used_at", now)
        redis.call("DEL", ended(row))
        if string.find(may, "r") then
            redis.call("HSET", row, "record", given)
        end
        redis.call("ZADD", used, now, row)
        replies[i] = {"created", epoch, now, string.find(may, "r") and given or false}
    elseif not last_owner then
        replies[i] = {"missing", 0, "0", false}
    elseif not string.find(may, "f") then
        replies[i] = {"exists", 0, "0", false}
    elseif is_released == "1" or last_owner == owner or string.find(may, "t")
            or (string.find(may, "a") and not is_alive(last_owner)) then
        local epoch = math.max(least, 1 + last)
        redis.call("HSET", row, "epoch", epoch, "owner", owner, "is_released", 0)
        local used_at, record = unpack(redis.call("HMGET", row, "used_at", "record"))
        replies[i] = {"taken", epoch, used_at, record}
    else
        if string.find(may, "a") then
            local key = string.sub(row, 1 + string.len("streamcell:session:"))
            redis.pcall("PUBLISH", "streamcell:asked:" .. last_owner, key)
        end
        replies[i] = {"owned_elsewhere", last, "0", false}
    end
end
return replies
"""
)

# ARGV: owner; then for each row kind (a value of base.WriteKind), epoch, used_at, 1 if a record is given,
# record. Returns for each row 1 if the write was done, otherwise a value of base.WriteStatus, an epoch, and 1
# if the row is the owner's at that epoch. On a released row only a repeated release is done.
WRITE = (
    _ENDED
    + """
local owner, used = ARGV[1], KEYS[#KEYS]
local replies = {}
for i = 1, #KEYS - 1 do
    local row = KEYS[i]
    local kind, epoch, used_at, has_record, record = unpack(ARGV, 5 * i - 3, 5 * i + 1)
    local at, last_owner, is_released = unpack(redis.call("HMGET", row, "epoch", "owner", "is_released"))
    if not at then
        replies[i] = {"gone", tonumber(redis.call("GET", ended(row))) or 0, 0}
    elseif at ~= epoch or last_owner ~= owner or (is_released == "1" and kind ~= "release") then
        local is_own = last_owner == owner and is_released == "0"
        replies[i] = {"not_owned", tonumber(at), is_own and 1 or 0}
    elseif kind == "verify" then
        replies[i] = 1
    elseif kind == "delete" then
        if tonumber(epoch) > 1 then
            redis.call("SET", ended(row), epoch, "EX", 86400)
        end
        redis.call("DEL", row)
        redis.call("ZREM", used, row)
        replies[i] = 1
    elseif has_record == "0" then
        redis.call("HSET", row, "is_released", kind == "release" and 1 or 0)
        replies[i] = 1
    else
        redis.call("HSET", row, "used_at", used_at, "is_released", kind == "release" and 1 or 0)
        redis.call("HSET", row, "record", record)
        redis.call("ZADD", used, used_at, row)
        replies[i] = 1
    end
end
return replies
"""
)

# ARGV: an instant. Deletes those of the given rows that were last used before it. Returns their keys.
EXPIRE = (
    _ENDED
    + """
local used = KEYS[#KEYS]
local expired = {}
for i = 1, #KEYS - 1 do
    local used_at = redis.call("ZSCORE", used, KEYS[i])
    if used_at and tonumber(used_at) < tonumber(ARGV[1]) then
        local epoch = tonumber(redis.call("HGET", KEYS[i], "epoch")) or 0
        if epoch > 1 then
            redis.call("SET", ended(KEYS[i]), epoch, "EX", 86400)
        end
        redis.call("DEL", KEYS[i])
        redis.call("ZREM", used, KEYS[i])
        expired[#expired + 1] = KEYS[i]
    end
end
return expired
"""
)

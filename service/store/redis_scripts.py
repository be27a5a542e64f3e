"""The scripts of a Redis store, in Lua: each changes rows atomically. Does not know connections.

KEYS are the rows and, as the last key, the sorted set of the rows' last uses. A row is a hash of epoch,
owner, is_released, used_at and, once saved, record. A released row keeps its last owner's token, so that a
script recognises a repeated release. When memory is short, a script fails before the first thing that it
adds, so no row is left half done.
"""

# ARGV: owner, now; then for each row its letters and its record. Letters: "c" may create, "f" may find,
# "t" may take over, "r" a record is given.
# Returns for each row: status, a value of base.ClaimStatus; epoch; used_at; record.
CLAIM = """
local owner, now, used = ARGV[1], ARGV[2], KEYS[#KEYS]
local replies = {}
for i = 1, #KEYS - 1 do
    local row, may, given = KEYS[i], ARGV[2 * i + 1], ARGV[2 * i + 2]
    local last_owner, is_released = unpack(redis.call("HMGET", row, "owner", "is_released"))
    if not last_owner and string.find(may, "c") then
        redis.call("HSET", row, "epoch", 1, "owner", owner, "is_released", 0, "used_at", now)
        if string.find(may, "r") then
            redis.call("HSET", row, "record", given)
        end
        redis.call("ZADD", used, now, row)
        replies[i] = {"created", 1, now, string.find(may, "r") and given or false}
    elseif not last_owner then
        replies[i] = {"missing", 0, "0", false}
    elseif not string.find(may, "f") then
        replies[i] = {"exists", 0, "0", false}
    elseif is_released == "1" or last_owner == owner or string.find(may, "t") then
        local epoch = redis.call("HINCRBY", row, "epoch", 1)
        redis.call("HSET", row, "owner", owner, "is_released", 0)
        local used_at, record = unpack(redis.call("HMGET", row, "used_at", "record"))
        replies[i] = {"taken", epoch, used_at, record}
    else
        replies[i] = {"owned_elsewhere", tonumber(redis.call("HGET", row, "epoch")), "0", false}
    end
end
return replies
"""

# ARGV: owner; then for each row kind (a value of base.WriteKind), epoch, used_at, 1 if a record is given,
# record. Returns for each row 1 if the write was done. On a released row only a repeated release is done.
WRITE = """
local owner, used = ARGV[1], KEYS[#KEYS]
local replies = {}
for i = 1, #KEYS - 1 do
    local row = KEYS[i]
    local kind, epoch, used_at, has_record, record = unpack(ARGV, 5 * i - 3, 5 * i + 1)
    local at, last_owner, is_released = unpack(redis.call("HMGET", row, "epoch", "owner", "is_released"))
    if at ~= epoch or last_owner ~= owner or (is_released == "1" and kind ~= "release") then
        replies[i] = 0
    elseif kind == "delete" then
        redis.call("DEL", row)
        redis.call("ZREM", used, row)
        replies[i] = 1
    else
        redis.call("HSET", row, "used_at", used_at, "is_released", kind == "release" and 1 or 0)
        if has_record == "1" then
            redis.call("HSET", row, "record", record)
        else
            redis.call("HDEL", row, "record")
        end
        redis.call("ZADD", used, used_at, row)
        replies[i] = 1
    end
end
return replies
"""

# ARGV: an instant. Deletes those of the given rows that were last used before it. Returns their keys.
EXPIRE = """
local used = KEYS[#KEYS]
local expired = {}
for i = 1, #KEYS - 1 do
    local used_at = redis.call("ZSCORE", used, KEYS[i])
    if used_at and tonumber(used_at) < tonumber(ARGV[1]) then
        redis.call("DEL", KEYS[i])
        redis.call("ZREM", used, KEYS[i])
        expired[#expired + 1] = KEYS[i]
    end
end
return expired
"""
